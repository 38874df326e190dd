"""One child process that renders chat templates, driven from the event loop.

Started with the first render, killed when a render outlasts its time or is cancelled, and started anew by the next one.
Knows how to talk to `template_worker.py`; nothing of messages or tokens.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import msgspec

from actorllm.errors import BrokenChatTemplate, InvalidRequest, RequestFailed
from actorllm.tokenizer.template_worker import Render, Rendered

WORKER = Path(__file__).with_name("template_worker.py")
START_TIMEOUT = 30.0
"""Seconds for Python to start and import jinja2, on a busy machine."""


class TemplateProcess:
    """`render` one at a time; `close` ends the child and may be called twice."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is no child."""
        return self._process.pid if self._process is not None else None

    async def render(self, request: Render) -> str:
        """The rendered text. Raises `InvalidRequest` with the template's own sentence, or when time is over, and
        `BrokenChatTemplate` with the compiler's."""
        try:
            frame = msgspec.msgpack.encode(request)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise InvalidRequest(f"the conversation cannot be rendered: {error}", param="messages") from error
        async with self._lock:
            if self._is_closed:
                raise RequestFailed("the chat template's process was closed")
            rendered = await self._exchange(frame, seconds=request.timeout)
        if rendered.is_broken:
            raise BrokenChatTemplate(rendered.error or "")
        if rendered.text is None:
            raise InvalidRequest(rendered.error or "the chat template failed", param="messages")
        return rendered.text

    async def close(self) -> None:
        """End the child; a render under way fails. Later renders fail too."""
        self._is_closed = True
        if self._lock.locked() and self._process is not None:
            _kill(self._process)  # a render is under way; it will find the child gone
        async with self._lock:
            await self._end()

    async def _exchange(self, frame: bytes, *, seconds: float) -> Rendered:
        """One request and its answer. Anything but an answer leaves no child behind."""
        is_answered = False
        try:
            process = await self._started()
            async with asyncio.timeout(seconds):
                rendered = await _ask(process, frame)
            is_answered = True
            return rendered
        except TimeoutError as error:
            raise InvalidRequest(f"the chat template did not finish within {seconds:g} seconds", param="messages") from error
        except (OSError, EOFError) as error:
            raise RequestFailed("the chat template's process ended unexpectedly; send the request again") from error
        finally:
            if not is_answered:
                await asyncio.shield(self._end())

    async def _started(self) -> Process:
        """The child, ready; started here where there is none."""
        if self._process is not None and self._process.returncode is None:
            return self._process
        await self._end()
        # -P: the folder of the worker's file is not searched for modules. An own session: Ctrl-C is the parent's.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", str(WORKER), stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await _read(self._process)
        except TimeoutError as error:
            raise RequestFailed(f"the chat template's process did not start within {START_TIMEOUT:g} seconds") from error
        return self._process

    async def _end(self) -> None:
        """Kill the child, if there is one, and give its descriptors back."""
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        await process.stdout.read()
        await process.wait()


def _kill(process: Process) -> None:
    """End the child, unless it is gone already: a signal to a child that nobody has waited for yet would make
    `subprocess` wait for it, behind asyncio's back."""
    assert process.stdout is not None
    if process.returncode is None and not process.stdout.at_eof():
        process.kill()


async def _ask(process: Process, frame: bytes) -> Rendered:
    assert process.stdin is not None
    process.stdin.write(len(frame).to_bytes(4, "little") + frame)
    await process.stdin.drain()
    return await _read(process)


async def _read(process: Process) -> Rendered:
    assert process.stdout is not None
    length = int.from_bytes(await process.stdout.readexactly(4), "little")
    return msgspec.msgpack.decode(await process.stdout.readexactly(length), type=Rendered)
