"""Every error that a user of ActorLLM can meet, as one tree.

Catch broad (`ActorLLMError`) or narrow; each class carries the HTTP status that the server answers
with, and each message says what is wrong, where, and what to change.

    ActorLLMError                      500
    ├── RequestError                         the fault of one request; nothing else is affected
    │   ├── InvalidRequest             400   a field is malformed or out of range (also a ValueError)
    │   │   ├── PromptTooLong          400   the prompt and its output do not fit the context
    │   │   ├── UnsupportedField       400   a known field that this version does not build
    │   │   └── NoChatTemplate         400   the checkpoint has no chat template
    │   ├── UnknownModel               404   the request names a model that is not served
    │   ├── QueueFull                  429   too many requests wait already
    │   ├── QueueTimeout               503   the request waited longer than its deadline
    │   ├── RequestTimeout             504   the request ran longer than its deadline
    │   ├── ChatError                        a message of a chat socket cannot be carried out
    │   │   ├── MalformedFrame         400   the frame is no message of the protocol
    │   │   ├── ForeignOrigin          403   a page of another site opened the socket
    │   │   ├── UnknownConversation    404   this socket has no conversation of that name
    │   │   ├── UnknownTurn            404   the conversation has no turn of that id
    │   │   ├── AnswerRunning          409   the conversation's answer has to end first
    │   │   ├── NoAnswerRunning        409   there is nothing to cancel
    │   │   └── ChatTooLarge           413   the socket holds as much as it may
    │   ├── BrokenChatTemplate         500   the checkpoint's chat template cannot be compiled
    │   ├── RequestAborted             499   the client left or called abort
    │   └── RequestFailed              500   this request could not be computed
    ├── ModelError                           the model cannot be served; raised while loading
    │   ├── UnsupportedConfig          400   config.json asks for something that is not implemented
    │   ├── CheckpointError            400   a file of the checkpoint is missing, truncated or lies
    │   │   ├── TensorMissing          400   the model needs a tensor that no file holds
    │   │   └── TensorLeftOver         400   a file holds a tensor that the model did not claim
    │   ├── TokenizerError             400   the tokenizer's files are missing or unreadable
    │   ├── HubError                         a model of the hub could not be fetched
    │   │   ├── HubUnreachable         503   no network, or offline, and the cache lacks the model
    │   │   ├── HubModelNotFound       404   no model or revision of that name
    │   │   ├── HubAccessDenied        403   the model is gated, or the token is not accepted
    │   │   ├── DownloadInterrupted    503   the download broke off too often
    │   │   ├── HubCacheUnusable       500   the cache's folder cannot be read or written
    │   │   └── DiskFull               507   the model does not fit the cache's disk
    │   └── NotEnoughMemory            507   weights or one context do not fit the memory given
    ├── PluginError                          a model plugin cannot be used
    │   ├── PluginMissing              400   no installed plugin serves the architecture
    │   ├── PluginBroken               500   importing the plugin raised
    │   ├── PluginAmbiguous            500   two distributions serve the same architecture
    │   ├── PluginOutdated             500   the plugin speaks another version of the contract
    │   └── PluginInvalid              500   the entry point is not what the contract asks for
    ├── RemoteError                    502   a server that is talked to cannot be reached, or fails
    ├── SettingsError                  400   a flag, variable or file of settings is wrong
    └── EngineError                          the engine itself
        ├── DeviceError                503   a device step raised
        │   ├── DeviceLost             503   the device cannot be used again by this process
        │   └── DeviceHung             503   a step did not return in time
        ├── EngineFailed               503   an actor failed too often; every stream was failed
        └── EngineStopped              503   the engine is draining or has stopped
"""


class ActorLLMError(Exception):
    """The root. `status` is the HTTP status, `param` the request field at fault, if one is."""

    status = 500

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(ActorLLMError):
    """One request is at fault; nobody else is affected."""


class InvalidRequest(RequestError, ValueError):
    """A field of the request is malformed or out of its range."""

    status = 400


class PromptTooLong(InvalidRequest):
    """The prompt, or the prompt with `max_tokens` of output, does not fit the context that is served."""


class UnsupportedField(InvalidRequest):
    """The field is known to the API but not built in this version."""


class NoChatTemplate(InvalidRequest):
    """The checkpoint ships no chat template, and none is invented."""


class BrokenChatTemplate(RequestError):
    """The checkpoint's chat template is no template: chats cannot be answered, completions can."""


class UnknownModel(RequestError):
    """The request names a model that this server does not serve."""

    status = 404


class QueueFull(RequestError):
    """As many requests wait as `max_waiting` allows; try again later."""

    status = 429


class QueueTimeout(RequestError):
    """The request's deadline for waiting passed before it ran."""

    status = 503


class RequestTimeout(RequestError):
    """The request's deadline for running passed before it finished."""

    status = 504


class ChatError(RequestError):
    """A message of a chat socket cannot be carried out; the socket and its conversations are as before."""

    status = 400


class MalformedFrame(ChatError):
    """The frame is no message of the protocol."""


class ForeignOrigin(ChatError):
    """A page of another site tried to open a chat socket."""

    status = 403


class UnknownConversation(ChatError):
    """This socket has no conversation of that name."""

    status = 404


class UnknownTurn(ChatError):
    """The conversation has no turn of that id."""

    status = 404


class AnswerRunning(ChatError):
    """One answer runs in a conversation at a time; this has to wait for its end, or cancel it."""

    status = 409


class NoAnswerRunning(ChatError):
    """There is no answer to cancel, or it is being cancelled already."""

    status = 409


class ChatTooLarge(ChatError):
    """The socket holds as many conversations, turns or characters as it may."""

    status = 413


class RequestAborted(RequestError):
    """The client left, or the request was aborted."""

    status = 499


class RequestFailed(RequestError):
    """This request could not be computed; others go on."""


class ModelError(ActorLLMError):
    """The model cannot be served; raised while it is loaded."""

    status = 400


class UnsupportedConfig(ModelError):
    """config.json asks for a computation that is not implemented."""


class CheckpointError(ModelError):
    """A file of the checkpoint is missing, truncated, or contradicts its header."""


class TensorMissing(CheckpointError):
    """The model needs tensors that no file of the checkpoint holds."""


class TensorLeftOver(CheckpointError):
    """The checkpoint holds tensors that the model neither claims nor ignores."""


class TokenizerError(ModelError):
    """The tokenizer's files are missing, unreadable, or of an unknown kind."""


class HubError(ModelError):
    """A model of the hub could not be fetched."""


class HubUnreachable(HubError):
    """The hub does not answer or may not be asked, and its cache does not hold the whole model."""

    status = 503


class HubModelNotFound(HubError):
    """The hub has no model of that name, or not in that revision, that this user may see."""

    status = 404


class HubAccessDenied(HubError):
    """The model is gated, or the token is not accepted."""

    status = 403


class DownloadInterrupted(HubError):
    """The download broke off more often than it is begun again."""

    status = 503


class HubCacheUnusable(HubError):
    """The folder of the hub's cache cannot be made, read or written."""

    status = 500


class DiskFull(HubError):
    """The model does not fit the disk of the hub's cache."""

    status = 507


class NotEnoughMemory(ModelError):
    """The weights, or the KV cache of one context, do not fit the memory given."""

    status = 507


class PluginError(ActorLLMError):
    """A model plugin cannot be used; the message names distribution, version and entry point."""


class PluginMissing(PluginError):
    """No installed plugin serves the architecture."""

    status = 400


class PluginBroken(PluginError):
    """Importing the plugin raised."""


class PluginAmbiguous(PluginError):
    """Two distributions register the same architecture."""


class PluginOutdated(PluginError):
    """The plugin registers under another version of the contract."""


class PluginInvalid(PluginError):
    """The entry point does not lead to what the contract asks for."""


class RemoteError(ActorLLMError):
    """A server that `actorllm chat --url` talks to cannot be reached, fails, or does not speak OpenAI's API."""

    status = 502


class SettingsError(ActorLLMError):
    """A flag, environment variable or settings file is wrong."""

    status = 400


class EngineError(ActorLLMError):
    """The engine, not a request, is at fault."""

    status = 503


class DeviceError(EngineError):
    """A step raised on the device; running requests are recomputed."""


class DeviceLost(DeviceError):
    """The device's error is sticky: this process cannot use it again."""


class DeviceHung(DeviceError):
    """A step did not return within the step timeout."""


class EngineFailed(EngineError):
    """An actor failed more often than its restart budget allows."""


class EngineStopped(EngineError):
    """The engine is draining or has stopped."""


def error_named(name: str) -> type[ActorLLMError]:
    """The error class called `name`; `ActorLLMError` for a name this version does not know."""
    pending: list[type[ActorLLMError]] = [ActorLLMError]
    while pending:
        candidate = pending.pop()
        if candidate.__name__ == name:
            return candidate
        pending.extend(candidate.__subclasses__())
    return ActorLLMError
