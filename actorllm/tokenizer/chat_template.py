"""Conversations to text through the checkpoint's own chat template; none is ever invented.

Rendering happens in a child process (`template_process.py`, `template_worker.py`), bounded in time and size. Special-token text
in what a client wrote stays text: the worker breaks it up with the tokenizer's `breaker`, which encoding drops again.
Limits of that: a special token of one character, and one that a template puts together from pieces ("<|" + role + "|>"), still
become ids, as do added tokens that are not special. Knows no requests.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from actorllm.errors import BrokenChatTemplate, InvalidRequest, NoChatTemplate
from actorllm.tokenizer.load import Tokenizer
from actorllm.tokenizer.template_process import TemplateProcess
from actorllm.tokenizer.template_worker import Render, find_fault

logger = logging.getLogger(__name__)
RENDER_TIMEOUT = 2.0
"""Seconds that rendering one conversation may take."""

MAX_RENDERED_LEN = 16 * 2**20
"""Characters that rendering one conversation may write."""

MAX_MESSAGES = 4096
"""Messages of one conversation."""

RESERVED_KWARGS = frozenset(
    (
        *("messages", "conversation", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "tokenizer", "tokenizer_kwargs", "processor_kwargs", "padding", "truncation", "max_length"),
        *("return_dict", "return_tensors", "return_assistant_tokens_mask"),
        *("raise_exception", "strftime_now", "namespace"),
    )
)
"""Names that are arguments elsewhere, or that templates rely on."""

TEXT_PARTS = ("text", "input_text", "output_text")


class ChatTemplate:
    """The template(s) of one checkpoint. `source` is the template, or templates by name ("default", and "tool_use" for
    requests with tools), or None. `variables` are what templates may name: bos_token, eos_token, ... as text. `file_name` is where
    they were read. A template that is none is warned of, and fails the chats that need it.
    """

    def __init__(
        self,
        source: str | Mapping[str, str] | None,
        variables: Mapping[str, str],
        *,
        timeout: float = RENDER_TIMEOUT,
        file_name: str = "tokenizer_config.json",
    ) -> None:
        self._sources = {"default": source} if isinstance(source, str) else dict(source or {})
        self._variables = dict(variables)
        self._timeout = timeout
        self._process = TemplateProcess()
        self._file_name = file_name
        self._faults = {text: fault for text in self._sources.values() if (fault := find_fault(text)) is not None}
        for fault in self._faults.values():
            logger.warning("%s", self._broken(fault).message)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ChatTemplate":
        """The template that came with the tokenizer."""
        return cls(tokenizer.chat_template, tokenizer.special_tokens, file_name=tokenizer.template_file)

    @property
    def process_id(self) -> int | None:
        """The renderer's process id; None before the first render and after `close`."""
        return self._process.pid

    async def render(
        self,
        messages: object,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> str:
        """The conversation as text. With `tokenizer`, its special tokens are broken up wherever a client wrote them.

        Raises `NoChatTemplate`, `BrokenChatTemplate`, or `InvalidRequest` for malformed messages, reserved `kwargs`, the template's own refusal
        and a template that takes too long.
        """
        source = self._source_for(has_tools=bool(tools))
        if source in self._faults:
            raise self._broken(self._faults[source])
        conversation = check_messages(messages)
        if add_generation_prompt and continue_final_message:
            raise InvalidRequest(
                "continue_final_message cannot go with add_generation_prompt: the answer either goes on with the final "
                "message or begins a new one; set one of them to false",
                param="continue_final_message",
            )
        for name in kwargs or {}:
            if name in RESERVED_KWARGS or name in self._variables:
                raise InvalidRequest(f"chat_template_kwargs may not set {name!r}: it is reserved", param="chat_template_kwargs")
        request = Render(
            source=source,
            conversation={"documents": None, **(kwargs or {}), "messages": conversation, "tools": list(tools) if tools else None},
            constants=self._variables | {"add_generation_prompt": add_generation_prompt},
            literals=() if tokenizer is None else tokenizer.special_texts(),
            breaker="" if tokenizer is None else tokenizer.breaker,
            is_continued=continue_final_message,
            max_len=MAX_RENDERED_LEN,
            timeout=self._timeout,
        )
        try:
            return await self._process.render(request)
        except BrokenChatTemplate as error:  # what only compiling it finds
            raise self._broken(error.message) from error

    async def close(self) -> None:
        """End the renderer's process. Idempotent."""
        await self._process.close()

    def _broken(self, fault: str) -> BrokenChatTemplate:
        return BrokenChatTemplate(
            f"the chat template in {self._file_name} cannot be compiled: {fault}; correct it or download it again and restart, or use "
            "/v1/completions"
        )

    def _source_for(self, *, has_tools: bool) -> str:
        source = self._sources.get("tool_use") if has_tools else None
        source = source or self._sources.get("default")
        if source is not None:
            return source
        if self._sources:
            names = ", ".join(sorted(self._sources))
            raise NoChatTemplate(f"this model's chat templates are called {names}, and none is called default")
        raise NoChatTemplate(
            "this model has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
            "use /v1/completions, or add the template that the model was trained with"
        )


def check_messages(messages: object) -> list[dict[str, Any]]:
    """The messages with content as one string: text parts are joined by line breaks. Unknown fields stay.

    Raises `InvalidRequest` that names the message and the field.
    """
    if not isinstance(messages, list):
        raise InvalidRequest("messages must be a list of messages", param="messages")
    if not messages:
        raise InvalidRequest("messages is empty: there must be at least one message", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(
            f"there are {len(messages)} messages, but a conversation has at most {MAX_MESSAGES}: leave out the oldest", param="messages"
        )
    return [_check_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _check_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} must be an object with role and content", param=where)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"{where}.role must be a string such as 'user'", param=f"{where}.role")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return message
    if content is None and role == "assistant":
        return message | {"content": ""}  # as the clients of OpenAI send an answer that was empty
    return message | {"content": _text_of(content, f"{where}.content")}


def _text_of(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of text parts", param=where)
    texts = []
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"{where}[{place}] must be a text part, {{'type': 'text', 'text': ...}}; this model reads text only", param=where
            )
        texts.append(part["text"])
    return "\n".join(texts)
