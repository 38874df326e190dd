"""A conversation in the terminal: its turns, and how it is saved. Knows no model and no terminal."""

import json
import time
from pathlib import Path


class Conversation:
    """Turns of the user and the assistant by turns, beginning with the user, under an optional system message.

    The last turn may be the user's: it waits for an answer, or did not get one.
    """

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self._turns: list[str] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """As OpenAI's API takes them."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return system + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(self._turns)]

    def ask(self, text: str) -> None:
        """Append a turn of the user; it takes the place of one that did not get an answer."""
        if len(self._turns) % 2:
            self._turns.pop()
        self._turns.append(text)

    def answer(self, text: str) -> None:
        """Append the answer to the last turn."""
        assert len(self._turns) % 2
        self._turns.append(text)

    def retry(self) -> bool:
        """Take the last answer back, so that the user's last turn waits for one again; False where nothing was asked."""
        if len(self._turns) % 2 == 0 and self._turns:
            self._turns.pop()
        return bool(self._turns)

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self._turns.clear()

    def save(self, path: Path, *, model: str) -> None:
        """Write a new file: messages as JSON if its name ends with .json, or else Markdown. Raises `OSError`."""
        with path.open("x", encoding="utf-8") as file:
            if path.suffix == ".json":
                file.write(json.dumps({"model": model, "messages": self.messages}, ensure_ascii=False, indent=2) + "\n")
                return
            file.write(f"# A conversation with {model}, {time.strftime('%Y-%m-%d %H:%M')}\n")
            for message in self.messages:
                file.write(f"\n## {message['role'].capitalize()}\n\n{message['content']}\n")
