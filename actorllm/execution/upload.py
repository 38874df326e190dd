"""A step's numbers on their way to the device: collected on the host, and sent in one copy.

A copy of its own for each small list would cost a launch each, and from memory that is not pinned a wait for the device. Knows
nothing of what the numbers mean.

Legend: N numbers of one part.
"""

from array import array
from collections.abc import Iterable

import torch
from torch import Tensor


class Part:
    """Some of the numbers. `tensor` [N], int64 or float64, is on the device as soon as the upload is sent."""

    __slots__ = ("_is_float", "_tensor")

    def __init__(self, *, is_float: bool = False) -> None:
        self._is_float = is_float
        self._tensor: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        assert self._tensor is not None, "the upload is not sent yet"
        return self._tensor

    def _arrive(self, words_N: Tensor) -> None:
        self._tensor = words_N.view(torch.float64) if self._is_float else words_N


class Upload:
    """Add all parts, `send` once, then read their tensors; these are views of one tensor."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._narrow: list[tuple[Part, bytes]] = []
        self._wide: list[tuple[Part, bytes]] = []

    def ints(self, data: bytes) -> Part:
        """int32, little-endian."""
        part = Part()
        self._narrow.append((part, data))
        return part

    def longs(self, values: Iterable[int]) -> Part:
        """Whole numbers beyond int32."""
        part = Part()
        self._wide.append((part, array("q", values).tobytes()))
        return part

    def floats(self, values: Iterable[float]) -> Part:
        """Numbers in double precision."""
        part = Part(is_float=True)
        self._wide.append((part, array("d", values).tobytes()))
        return part

    def send(self) -> None:
        """Start the copy; nothing waits for it. On a CPU there is none."""
        narrow, wide = (b"".join(data for _, data in parts) for parts in (self._narrow, self._wide))
        num_narrow, num_wide = len(narrow) // 4, len(wide) // 8
        numbers = torch.empty(num_narrow + num_wide, dtype=torch.int64, pin_memory=self._device.type == "cuda")
        if num_narrow:
            numbers[:num_narrow] = torch.frombuffer(bytearray(narrow), dtype=torch.int32)
        if num_wide:
            numbers[num_narrow:] = torch.frombuffer(bytearray(wide), dtype=torch.int64)
        lens = [len(data) // 4 for _, data in self._narrow] + [len(data) // 8 for _, data in self._wide]
        sent = numbers.to(self._device, non_blocking=True).split(lens)
        for (part, _), words in zip(self._narrow + self._wide, sent, strict=True):
            part._arrive(words)
