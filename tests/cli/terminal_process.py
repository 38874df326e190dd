"""A process in a terminal of its own, whose screen is drawn by a terminal emulator."""

import asyncio
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pyte

LINES, COLUMNS = 200, 120
LAUNCHER = "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
"""Makes the terminal on descriptor 0 the one that Ctrl-C comes from."""


class _Screen(pyte.Screen):
    """Answers the process when it asks where the cursor is."""

    keyboard: int

    def write_process_input(self, data: str) -> None:
        os.write(self.keyboard, data.encode())


class TerminalProcess:
    """What is on the screen, and keys to type."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process = process
        self.terminal = terminal
        self._has_drawn = asyncio.Event()
        self._screen = _Screen(COLUMNS, LINES)
        self._screen.keyboard = terminal
        self._stream = pyte.ByteStream(self._screen)
        asyncio.get_running_loop().add_reader(terminal, self._draw)

    @property
    def text(self) -> str:
        """The whole screen, without blanks at ends."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def type(self, keys: str) -> None:
        """Press keys: Enter is a carriage return, Ctrl-C is \\x03."""
        os.write(self.terminal, keys.encode())

    async def shows(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """Wait until the screen matches, over its lines; `after` as many characters."""
        try:
            async with asyncio.timeout(90):  # a new home compiles the kernels first
                while not (found := re.search(pattern, self.text[after:], re.DOTALL)):
                    self._has_drawn.clear()
                    await self._has_drawn.wait()
        except TimeoutError:
            raise AssertionError(f"no {pattern!r} on the screen:\n{self.text}") from None
        return found

    async def ends(self) -> int:
        """Wait for the exit code."""
        async with asyncio.timeout(30):
            return await asyncio.to_thread(self.process.wait)

    @property
    def shows_keys(self) -> bool:
        """Whether the terminal shows what is typed, as it did at first."""
        return bool(termios.tcgetattr(self.terminal)[3] & termios.ECHO)

    @property
    def marks_pastes(self) -> bool:
        """Whether the terminal tells pasted text from keys."""
        return 2004 << 5 in self._screen.mode  # as pyte keeps private modes

    def _draw(self) -> None:
        try:
            self._stream.feed(os.read(self.terminal, 65536))
            self._has_drawn.set()
        except OSError:  # nobody has the other end any more
            asyncio.get_running_loop().remove_reader(self.terminal)


@asynccontextmanager
async def in_terminal(*arguments: str, environment: Mapping[str, str]) -> AsyncIterator[TerminalProcess]:
    """`python ARGUMENTS` in a terminal."""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (LINES, COLUMNS))
    process = _start(arguments, end, environment)
    try:
        yield TerminalProcess(process, terminal)
    finally:
        process.kill()
        process.wait()
        asyncio.get_running_loop().remove_reader(terminal)
        for descriptor in (terminal, end):
            os.close(descriptor)


def _start(arguments: tuple[str, ...], end: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", LAUNCHER, *arguments]
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment)
