"""The chat itself: messages and commands come from a terminal, answers from a model."""

import asyncio
import re
import time
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from actorllm.cli.chat_models import ChatModel, Delta
from actorllm.cli.conversation import Conversation
from actorllm.errors import ActorLLMError

HELP = """\
/reset           forget the conversation and begin anew; the system message stays
/regenerate      answer the last message again
/system [TEXT]   set the system message, or show it; /system off removes it
/save [FILE]     save the conversation as Markdown, or as JSON where FILE ends with .json
/help            show this
/exit            leave, as Ctrl-D does

Enter sends. Alt-Enter, Ctrl-J, and Enter after a backslash begin a new line; pasted text may have several lines.
The arrow keys bring back earlier messages. A space before a slash sends it as a message.
What is typed while an answer comes is sent next. Ctrl-C stops the answer, and drops what was typed meanwhile.
"""
COMMANDS = ("/reset", "/regenerate", "/system ", "/save ", "/help", "/exit")
"""As the Tab key completes them: what takes an argument ends with a space."""



class Screen(Protocol):
    """What the chat needs of a terminal; `Terminal` has it."""

    async def read(self) -> str: ...
    def write(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def complain(self, text: str) -> None: ...
    def silent_keys(self) -> AbstractContextManager[None]: ...
    def forget_typed_ahead(self) -> None: ...


@dataclass
class Answer:
    """What has come of an answer, and when; times are seconds of the monotonic clock."""

    started: float
    pieces: list[str] = field(default_factory=list)
    first: float | None = None
    last: float = 0.0
    num_tokens: int | None = None
    finish: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def add(self, delta: Delta) -> None:
        """Count a piece in."""
        if delta.text:
            self.pieces.append(delta.text)
            self.last = time.monotonic()
            self.first = self.first or self.last
        self.num_tokens = self.num_tokens if delta.num_tokens is None else delta.num_tokens
        self.finish = delta.finish or self.finish

    def summary(self) -> str:
        """Number, speed and waiting time of its tokens, as far as they are known."""
        if self.first is None:
            return "an empty answer"
        facts = [f"first text after {self.first - self.started:.2f} s"]
        if self.num_tokens is not None:
            seconds = self.last - self.first
            speed = f", {(self.num_tokens - 1) / seconds:.1f} tokens/s" if self.num_tokens > 1 and seconds > 0 else ""
            facts.insert(0, f"{self.num_tokens} token{'s' * (self.num_tokens != 1)}{speed}")
        if self.finish == "length":
            facts.append("cut off: --max-tokens or the model's context is reached")
        return ", ".join(facts)


class ChatLoop:
    """`run` reads and answers until the user leaves; `interrupt` stops the answer that is coming, if one is."""

    def __init__(self, model: ChatModel, screen: Screen, conversation: Conversation) -> None:
        self._model = model
        self._screen = screen
        self._conversation = conversation
        self._answering: asyncio.Task[None] | None = None

    async def run(self) -> None:
        context = "" if self._model.context_len is None else f" (context {self._model.context_len} tokens)"
        self._screen.note(f"{self._model.name}{context}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        while True:
            try:
                text = await self._screen.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._screen.note("Ctrl-D or /exit leaves")
                continue
            command = re.fullmatch(r"(/[a-z]*)(?:\s+(.*?))?\s*", text, re.DOTALL)
            if command is None:
                if text.strip():
                    self._conversation.ask(text.strip())
                    await self._answer()
            elif command[1] == "/exit":
                return
            else:
                await self._obey(command[1], command[2] or "")

    def interrupt(self) -> None:
        """Stop the answer."""
        if self._answering is not None:
            self._answering.cancel()

    async def _obey(self, command: str, argument: str) -> None:
        match command:
            case "/reset":
                self._conversation.reset()
                self._screen.note("a new conversation")
            case "/regenerate":
                if self._conversation.retry():
                    await self._answer()
                else:
                    self._screen.complain("there is nothing to answer yet")
            case "/system":
                self._set_system(argument)
            case "/save":
                self._save(argument)
            case "/help":
                self._screen.write(HELP)
            case _:
                close = get_close_matches(command, [name.strip() for name in COMMANDS], n=1)
                hint = f": did you mean {close[0]}?" if close else ": /help lists them"
                self._screen.complain(f"there is no command {command}{hint} (a space before it sends it as a message)")

    def _set_system(self, argument: str) -> None:
        if argument:
            self._conversation.system = None if argument == "off" else argument
        system = self._conversation.system
        self._screen.note("no system message" if system is None else f"system message: {system}")

    def _save(self, argument: str) -> None:
        path = Path(argument or time.strftime("chat-%Y%m%d-%H%M%S.md")).expanduser()
        try:
            self._conversation.save(path, model=self._model.name)
        except FileExistsError:
            self._screen.complain(f"{path} exists already: give another name")
        except (OSError, RuntimeError) as error:
            self._screen.complain(f"cannot write {path} ({getattr(error, 'strerror', None) or error}): give another name")
        else:
            self._screen.note(f"saved as {path}")

    async def _answer(self) -> None:
        """Stream the answer to the last turn. What had come when it was stopped or failed is kept as the answer."""
        answer = Answer(time.monotonic())
        self._answering = asyncio.ensure_future(self._stream(answer))
        with self._screen.silent_keys():
            try:
                await asyncio.wait({self._answering})
            finally:
                self._answering.cancel()
            self._screen.write("\n" if answer.pieces and not answer.text.endswith("\n") else "")
            is_stopped = self._answering.cancelled()
            if is_stopped:
                self._screen.forget_typed_ahead()
            error = None if is_stopped else self._answering.exception()
            self._answering = None
            if answer.pieces or not (is_stopped or error):
                self._conversation.answer(answer.text)
            if isinstance(error, ActorLLMError):
                self._screen.complain(f"{error.message}\n/regenerate tries again, /reset begins anew")
            elif error is not None:
                raise error
            elif is_stopped:
                self._screen.note(f"stopped; {answer.summary()}" if answer.pieces else "stopped")
            else:
                self._screen.note(answer.summary())

    async def _stream(self, answer: Answer) -> None:
        async with aclosing(self._model.answer(self._conversation.messages)) as deltas:
            async for delta in deltas:
                answer.add(delta)
                if delta.text:
                    self._screen.write(delta.text)
