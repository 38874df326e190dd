"""The terminal of a chat: reading messages of several lines, and writing answers. Knows no model.

Text of a model is written without control characters: what a model says must not move the cursor or change the terminal.
"""

import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.completion import Completer, WordCompleter
from prompt_toolkit.filters import is_done
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import clear_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

PROMPT = ">>> "
CONTINUATION = "... "
HISTORY_FILE = Path(".local") / "state" / "actorllm" / "chat_history"
"""Below the home folder."""

MARK_PASTES, LEAVE_PASTES = "\x1b[?2004h", "\x1b[?2004l"
"""Have the terminal tell pasted text from keys: its ends of lines are no Enter."""

CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


class Terminal:
    """A screen and a keyboard; `commands` are completed by the Tab key."""

    def __init__(self, commands: Sequence[str]) -> None:
        completer: Completer = WordCompleter(list(commands), sentence=True)
        self._session: PromptSession[str] = PromptSession(
            message=PROMPT,
            prompt_continuation=CONTINUATION,
            multiline=True,
            key_bindings=_keys(),
            history=_history(),
            completer=completer,
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_suspend=True,
        )

    async def read(self) -> str:
        """The next message. Raises `EOFError` for Ctrl-D, `KeyboardInterrupt` for Ctrl-C where nothing was typed."""
        return await self._session.prompt_async()

    def write(self, text: str) -> None:
        """A piece of an answer, or plain text."""
        self._write(printable(text))

    @staticmethod
    def _write(text: str) -> None:
        """Text with the terminal's own commands in it."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line beside the conversation."""
        _print_line("fg:ansibrightblack", text)

    def complain(self, text: str) -> None:
        """A line that says what went wrong."""
        _print_line("fg:ansired", text)

    @contextmanager
    def silent_keys(self) -> Iterator[None]:
        """Within, keys are not shown (they would be mixed into the answer), but kept as they are for the next `read`. Ctrl-C still
        is a signal."""
        before = termios.tcgetattr(sys.stdin)
        as_typed = before[0] & ~termios.ICRNL  # Enter would come as Ctrl-J, a new line
        silent = [as_typed, *before[1:3], before[3] & ~(termios.ECHO | termios.ICANON), *before[4:]]
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
        self._write(MARK_PASTES)
        try:
            yield
        finally:
            with suppress(termios.error, OSError):  # the terminal may have gone
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
                self._write(LEAVE_PASTES)

    def forget_typed_ahead(self) -> None:
        """What was typed before and not read yet is gone, as the terminal itself does it at Ctrl-C."""
        clear_typeahead(self._session.input)
        with suppress(termios.error):  # the terminal may have gone
            termios.tcflush(sys.stdin, termios.TCIFLUSH)


def printable(text: str) -> str:
    """Text without control characters other than ends of lines and tabs."""
    return text.translate(CONTROLS)


def _print_line(style: str, text: str) -> None:
    print_formatted_text(FormattedText([(style, printable(text))]), flush=True)


def _history() -> History:
    """What was typed in earlier sessions, in a file that only its user may read."""
    try:
        path = Path.home() / HISTORY_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return FileHistory(str(path))
    except (OSError, RuntimeError):  # the latter where a user has no home folder
        return InMemoryHistory()


def _keys() -> KeyBindings:
    """Enter sends; Alt-Enter, Ctrl-J, and Enter after a backslash begin a new line."""
    keys = KeyBindings()

    @keys.add("enter", filter=~is_done)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys
