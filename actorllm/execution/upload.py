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
    """Some of the numbers. `tensor` [N] is on the device as soon as the upload is sent."""

    __slots__ = ("_dtype", "_start", "_stop", "_tensor", "_upload")

    def __init__(self, upload: "Upload", start: int, *, stop: int, dtype: torch.dtype) -> None:
        self._upload = upload
        self._start, self._stop = start, stop
        self._dtype = dtype
        self._tensor: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        if self._tensor is None:
            assert self._upload.numbers is not None, "the upload is not sent yet"
            self._tensor = self._upload.numbers[self._start : self._stop].view(self._dtype)
        return self._tensor


class Upload:
    """Add all parts, `send` once, then read their tensors; these are views of one tensor, `numbers`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._words = array("q")
        self.numbers: Tensor | None = None

    def __len__(self) -> int:
        return len(self._words)

    def ints(self, data: bytes) -> Part:
        """int32, little-endian."""
        return self._part(array("q", array("i", data)))

    def int32s(self, data: bytes) -> Part:
        """int32 that stay so: an even number of them."""
        return self._part(array("q", data), dtype=torch.int32)

    def longs(self, values: Iterable[int]) -> Part:
        """Whole numbers beyond int32."""
        return self._part(array("q", values))

    def floats(self, values: Iterable[float]) -> Part:
        """Numbers in double precision."""
        return self._part(array("q", array("d", values).tobytes()), dtype=torch.float64)

    def send(self, into: Tensor | None = None) -> None:
        """Start the copy, to the beginning of a tensor that is large enough or to a new one; nothing waits for it."""
        numbers = torch.frombuffer(self._words, dtype=torch.int64) if self._words else torch.empty(0, dtype=torch.int64)
        if self._device.type == "cuda":
            numbers = numbers.pin_memory()
        if into is None:
            self.numbers = numbers.to(self._device, non_blocking=True)
        else:
            self.numbers = into[: len(numbers)].copy_(numbers, non_blocking=True)

    def _part(self, words: "array[int]", *, dtype: torch.dtype = torch.int64) -> Part:
        start = len(self._words)
        self._words += words
        return Part(self, start, stop=len(self._words), dtype=dtype)
