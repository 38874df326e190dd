"""Finds stop strings in text that arrives in pieces, and holds back what might become one.

Knows characters only; which token a piece came from is the caller's business.
"""

from collections.abc import Sequence


class StopFinder:
    """`push` text, get back what may be shown; once a stop string is complete, `is_found` and nothing more comes.

    The earliest match wins; at the same start the one that completed. The stop string itself is never shown.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_found = False

    def push(self, piece: str) -> str:
        """The text that is safe to show after `piece` arrived."""
        if not self._stops:
            return piece
        if self.is_found:
            return ""
        text = self._held + piece
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.is_found = True
            self._held = ""
            return text[: min(starts)]
        held_len = self._possible_len(text)
        self._held = text[len(text) - held_len :]
        return text[: len(text) - held_len]

    def flush(self) -> str:
        """What was held back; the text has ended, so it cannot become a stop string."""
        held, self._held = self._held, ""
        return held

    def _possible_len(self, text: str) -> int:
        """Length of the longest end of `text` that begins some stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
