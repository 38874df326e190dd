"""The WebSocket chat's protocol: every frame both ways at `/v1/chat/ws`, each with an example.

A text frame holds one JSON object, a binary frame the same object as msgpack. `type` says which message it is. A socket is
answered in the kind of frame that it sent last; JSON before its first frame. One socket's life, shortened:

    server  {"type": "hello", "protocol": 1, "model": "demo", "context_len": 512, "max_frame": 1048576, "idle_timeout": 600.0,
             "defaults": {"temperature": 0.7}}
    client  {"type": "open", "conversation": "a"}
    server  {"type": "conversation", "conversation": "a", "system": null, "sampling": {}, "turns": [], "leaf": null,
             "answering": null}
    client  {"type": "send", "conversation": "a", "text": "Hello", "ref": "my first"}
    server  {"type": "turn", "ref": "my first", "conversation": "a", "turn": {"id": 1, "role": "user", "text": "Hello"}}
    server  {"type": "started", "conversation": "a", "turn": 2, "parent": 1}
    server  {"type": "delta", "conversation": "a", "turn": 2, "text": "Hi"}
    server  {"type": "delta", "conversation": "a", "turn": 2, "text": " there."}
    server  {"type": "finished", "conversation": "a", "turn": 2, "reason": "stop",
             "usage": {"prompt_tokens": 9, "completion_tokens": 4},
             "timings": {"queue_seconds": 0.001, "ttft_seconds": 0.04, "total_seconds": 0.1, "tokens_per_second": 50.0},
             "error": null}

A conversation is a tree of turns: user and assistant alternate from the root down, and an edited turn or a regenerated
answer is a sibling of the first one. `leaf` is the end of the branch that is on show, which the next turn goes on from.
Each `started` is followed by any number of `delta` and by exactly one `finished` of the same turn; their texts join to
the answer. One answer runs at a time in a conversation; conversations of a socket run side by side.

Every message is answered: what cannot be done by `error`. A `ref` that a client puts on a message comes back on the first
reply to it, `error` included. Conversations live as long as their socket; a client that comes back brings them in `open`.

Bounds: a frame has at most `max_frame` bytes; a name or `ref` 64 characters, a conversation 10,000 turns, a socket 64 conversations
with 4 Mi characters together. A socket is closed with 1001 when the server stops, 1009 after a frame that is too long, 1011
after an internal error, 4408 after `idle_timeout` seconds without a message or a running answer; and dropped where pings stay
unanswered. A client that does not read is held back: from 256 KiB of replies on its next message waits, and what it sends after that,
until it has read; only a `cancel` that nothing waits before is obeyed all the same. Deltas never hold anybody back, they join.

Knows no state and no transport.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from actorllm.messages import SamplingParams

PROTOCOL = 1
Name = Annotated[str, Meta(min_length=1, max_length=64)]
MAX_TURNS = 10_000
"""Turns of one conversation, branches included."""

TurnId = Annotated[int, Meta(ge=1, le=MAX_TURNS)]
Role = Literal["user", "assistant"]
Reason = Literal["stop", "length", "cancel", "error"]


class Sampling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How answers are sampled; what is left out is the model's default. Meanings and ranges are `SamplingParams`'."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """For the engine. Raises `InvalidRequest` that names the field."""
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(defaults, **given)

    @classmethod
    def of(cls, params: SamplingParams) -> "Sampling":
        """The fields that a chat may set, as they are in `params`."""
        return cls(**{name: getattr(params, name) for name in cls.__struct_fields__})


class Turn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One turn of the tree. Ids grow from parent to child; roots have no parent and are the user's. `finish` is an
    answer's end, None while it runs.

    {"id": 2, "parent": 1, "role": "assistant", "text": "Hi there.", "finish": "stop"}
    """

    id: TurnId
    parent: TurnId | None = None
    role: Role
    text: str
    finish: Reason | None = None


# --- from the client ----------------------------------------------------------------------------------


class ClientMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """What all messages of a client have."""

    ref: Name | None = None


class Open(ClientMessage, frozen=True, kw_only=True, tag="open"):
    """Begin a conversation under a name of the client's choice, or bring one back with its turns. Answered by `conversation`.

    {"type": "open", "conversation": "a", "system": "Answer briefly.", "sampling": {"temperature": 0.2},
     "turns": [{"id": 1, "role": "user", "text": "Hello"}], "leaf": 1}
    """

    conversation: Name
    system: str | None = None
    sampling: Sampling = Sampling()
    turns: list[Turn] = []
    leaf: TurnId | None = None


class Send(ClientMessage, frozen=True, kw_only=True, tag="send"):
    """The user's next turn, after the leaf. Answered by `turn`, `started`, `delta`..., `finished`.

    {"type": "send", "conversation": "a", "text": "What is a slot?"}
    """

    conversation: Name
    text: str


class Edit(ClientMessage, frozen=True, kw_only=True, tag="edit"):
    """Another text in the place of a user's turn: a new branch beside it. Answered like `send`.

    {"type": "edit", "conversation": "a", "turn": 1, "text": "Good morning"}
    """

    conversation: Name
    turn: TurnId
    text: str


class Regenerate(ClientMessage, frozen=True, kw_only=True, tag="regenerate"):
    """Another answer in the place of an assistant's turn, or the missing one to a user's turn. Answered by `started`...

    {"type": "regenerate", "conversation": "a", "turn": 2}
    """

    conversation: Name
    turn: TurnId


class Cancel(ClientMessage, frozen=True, kw_only=True, tag="cancel"):
    """End the running answer; what it has said so far stays. Answered by `finished` with reason "cancel".

    {"type": "cancel", "conversation": "a"}
    """

    conversation: Name


class Select(ClientMessage, frozen=True, kw_only=True, tag="select"):
    """Show the branch through this turn, down to its newest leaf. Answered by `selected`.

    {"type": "select", "conversation": "a", "turn": 2}
    """

    conversation: Name
    turn: TurnId


class Configure(ClientMessage, frozen=True, kw_only=True, tag="configure"):
    """Replace a conversation's system text and sampling, from its next answer on. Answered by `configured`.

    {"type": "configure", "conversation": "a", "system": null, "sampling": {"temperature": 0, "max_tokens": 200}}
    """

    conversation: Name
    system: str | None = None
    sampling: Sampling = Sampling()


class ListConversations(ClientMessage, frozen=True, kw_only=True, tag="list"):
    """Which conversations this socket has. Answered by `conversations`.

    {"type": "list"}
    """


class Pick(ClientMessage, frozen=True, kw_only=True, tag="pick"):
    """Everything about one conversation. Answered by `conversation`.

    {"type": "pick", "conversation": "a"}
    """

    conversation: Name


class Close(ClientMessage, frozen=True, kw_only=True, tag="close"):
    """Forget a conversation. Answered by `closed`.

    {"type": "close", "conversation": "a"}
    """

    conversation: Name


FromClient = Open | Send | Edit | Regenerate | Cancel | Select | Configure | ListConversations | Pick | Close


# --- from the server ----------------------------------------------------------------------------------


class ServerMessage(Struct, frozen=True, kw_only=True, tag_field="type"):
    """What all messages of the server have: the `ref` of the client's message that this is the first reply to."""

    ref: str | UnsetType = UNSET


class Hello(ServerMessage, frozen=True, kw_only=True, tag="hello"):
    """The first frame. Lengths are tokens, `max_frame` bytes, `idle_timeout` seconds without a message or a running answer.

    {"type": "hello", "protocol": 1, "model": "demo", "context_len": 512, "max_frame": 1048576, "idle_timeout": 600.0,
     "defaults": {"temperature": 0.7}}
    """

    protocol: int
    model: str
    context_len: int
    max_frame: int
    idle_timeout: float
    defaults: Sampling


class Conversation(ServerMessage, frozen=True, kw_only=True, tag="conversation"):
    """A conversation as a whole. `answering` is the turn of the running answer, whose text so far is among the turns.

    {"type": "conversation", "conversation": "a", "system": null, "sampling": {}, "turns": [{"id": 1, "role": "user",
     "text": "Hello"}], "leaf": 1, "answering": null}
    """

    conversation: str
    system: str | None
    sampling: Sampling
    turns: list[Turn]
    leaf: int | None
    answering: int | None


class Summary(Struct, frozen=True, kw_only=True):
    """A line in `conversations`; `title` is the beginning of the first turn."""

    conversation: str
    title: str
    num_turns: int
    is_answering: bool


class Conversations(ServerMessage, frozen=True, kw_only=True, tag="conversations"):
    """The socket's conversations, oldest first.

    {"type": "conversations", "conversations": [{"conversation": "a", "title": "Hello", "num_turns": 2,
     "is_answering": false}]}
    """

    conversations: list[Summary]


class NewTurn(ServerMessage, frozen=True, kw_only=True, tag="turn"):
    """The user's turn has its place in the tree.

    {"type": "turn", "conversation": "a", "turn": {"id": 1, "role": "user", "text": "Hello"}}
    """

    conversation: str
    turn: Turn


class Started(ServerMessage, frozen=True, kw_only=True, tag="started"):
    """An answer is under way as turn `turn`.

    {"type": "started", "conversation": "a", "turn": 2, "parent": 1}
    """

    conversation: str
    turn: int
    parent: int


class Delta(ServerMessage, frozen=True, kw_only=True, tag="delta"):
    """More of an answer. A client that reads slowly gets fewer and longer ones.

    {"type": "delta", "conversation": "a", "turn": 2, "text": "Hi"}
    """

    conversation: str
    turn: int
    text: str


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int


class Timings(Struct, frozen=True, kw_only=True):
    """Of one answer, in seconds from its arrival; None for what never came. `queue_seconds` goes up to the first step, or to
    the end if there was none; `tokens_per_second` is counted after the first token."""

    queue_seconds: float | None = None
    ttft_seconds: float | None = None
    total_seconds: float
    tokens_per_second: float | None = None


class Trouble(Struct, frozen=True, kw_only=True):
    """A typed error: `code` is its class in `actorllm/errors.py`, `param` the field at fault."""

    code: str
    message: str
    status: int
    param: str | None = None


class Finished(ServerMessage, frozen=True, kw_only=True, tag="finished"):
    """The one end of an answer: a stop, the token limit, a cancel, or an error, which `error` tells.

    {"type": "finished", "conversation": "a", "turn": 2, "reason": "stop", "usage": {"prompt_tokens": 9,
     "completion_tokens": 4}, "timings": {"queue_seconds": 0.001, "ttft_seconds": 0.04, "total_seconds": 0.1,
     "tokens_per_second": 50.0}, "error": null}
    """

    conversation: str
    turn: int
    reason: Reason
    usage: Usage
    timings: Timings
    error: Trouble | None = None


class Selected(ServerMessage, frozen=True, kw_only=True, tag="selected"):
    """The branch that is on show now.

    {"type": "selected", "conversation": "a", "leaf": 4}
    """

    conversation: str
    leaf: int


class Configured(ServerMessage, frozen=True, kw_only=True, tag="configured"):
    """What holds from the next answer on.

    {"type": "configured", "conversation": "a", "system": null, "sampling": {"temperature": 0.0}}
    """

    conversation: str
    system: str | None
    sampling: Sampling


class Closed(ServerMessage, frozen=True, kw_only=True, tag="closed"):
    """The conversation is forgotten.

    {"type": "closed", "conversation": "a"}
    """

    conversation: str


class Refused(ServerMessage, frozen=True, kw_only=True, tag="error"):
    """A client's message was not carried out; everything is as before.

    {"type": "error", "error": {"code": "UnknownConversation", "message": "there is no conversation 'b' on this socket",
     "status": 404, "param": "conversation"}, "conversation": "b"}
    """

    error: Trouble
    conversation: str | None = None


FromServer = (
    Hello | Conversation | Conversations | NewTurn | Started | Delta | Finished | Selected | Configured | Closed | Refused
)
