"""Calls of C++ kernels that were noted once, to be repeated by a single call from Python.

The arguments are repeated as they were: the same addresses, so whoever repeats them keeps that memory and puts new numbers there.
Knows no model and no torch operator.
"""

import ctypes
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from actorllm_kernels.native import Kernel, library

Argument = int | float | None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a kernel."""

    kernel: Kernel
    arguments: tuple[Argument, ...]

    @property
    def pointers(self) -> list[int]:
        """The arguments that are addresses."""
        pairs = zip(self.kernel.argument_types, self.arguments, strict=True)
        return [int(value) for kind, value in pairs if kind is ctypes.c_void_p and value]

    def moved(self, new: dict[int, int]) -> "Call":
        """The same with other addresses, where `new` has one."""
        pairs = zip(self.kernel.argument_types, self.arguments, strict=True)
        moved = (new.get(int(value), value) if kind is ctypes.c_void_p and value else value for kind, value in pairs)
        return Call(self.kernel, tuple(moved))


class Replay:
    """Calls that are made in order, without Python between them and without the GIL."""

    def __init__(self, calls: Sequence[Call]) -> None:
        kernels = library()
        assert kernels is not None, "calls were made by it"
        self._num_calls = len(calls)
        self._repeat = kernels["actorllm_replay"]
        self._repeat.argtypes, self._repeat.restype = (ctypes.c_void_p,) * 3 + (ctypes.c_int64,), None
        words, starts = array("q"), array("q")
        for call in calls:
            starts.append(len(words))
            words.extend(map(_word, call.kernel.argument_types, call.arguments))
        entries = (ctypes.cast(kernels[f"{call.kernel.name}_words"], ctypes.c_void_p).value or 0 for call in calls)
        self._tables = array("q", entries), starts, words  # kept: the calls below read them

    def run(self) -> None:
        """Make the calls."""
        self._repeat(*(table.buffer_info()[0] for table in self._tables), self._num_calls)


def _word(kind: type, value: Argument) -> int:
    """As replay.h reads it."""
    if kind is ctypes.c_float:
        return struct.unpack("<I", struct.pack("<f", value))[0]
    return int(value or 0)
