"""The pool of single-token KV slots of one cache group: who is free, how often is each one shared.

Plain ints and lists; knows no sequence, no tensor and no device.
"""

from collections.abc import Iterable, Sequence


class SlotsExhausted(Exception):
    """More slots were asked for than are free. A caller's fault: ask `num_free` first."""


class SlotPool:
    """`num_slots` slots, numbered from 0, each with a count of references.

    A fresh slot has one reference; `share` adds one, `release` takes one, and a slot without references is free
    again. Costs are proportional to the slots named in the call.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._references = [0] * num_slots
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Slots that `allocate` can still give."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots with at least one reference."""
        return self.num_slots - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` slots with one reference each. Raises `SlotsExhausted`."""
        if count > len(self._free):
            raise SlotsExhausted(f"{count} slots asked for, {len(self._free)} of {self.num_slots} are free")
        start = len(self._free) - count
        slots = self._free[start:]
        del self._free[start:]
        references = self._references
        for slot in slots:
            references[slot] = 1
        return slots

    def share(self, slots: Sequence[int]) -> None:
        """One more reference to each of `slots`, which must be in use."""
        references = self._references
        for slot in slots:
            assert references[slot] > 0, f"slot {slot} is free and cannot be shared"
            references[slot] += 1

    def release(self, slots: Iterable[int]) -> None:
        """One reference less to each of `slots`; those without any are free again."""
        references = self._references
        free = self._free
        for slot in slots:
            count = references[slot] - 1
            assert count >= 0, f"slot {slot} was released more often than taken"
            references[slot] = count
            if not count:
                free.append(slot)
