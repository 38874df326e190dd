"""Random weights by name: the same whole tensor for every shard, without a file.

For tests and benchmarks. Each tensor's values depend on its name, the whole shape and the seed alone.
"""

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from actorllm.weights.formats import Format, PlainFormat
from actorllm.weights.linear_weight import LinearWeight
from actorllm.weights.source import Part


class RandomWeights:
    """A `WeightSource` of normal values with deviation `std`; one-dimensional tensors are around 1."""

    def __init__(
        self,
        seed: int = 0,
        *,
        std: float = 0.02,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        storage: Format | None = None,
    ) -> None:
        self._seed = seed
        self._std = std
        self._device = device
        self._dtype = dtype
        self._format = storage or PlainFormat()

    def has(self, name: str) -> bool:
        return True

    def tensor(self, name: str, shape: tuple[int, ...], *, rows: Part = None) -> Tensor:
        return self.read(name, shape, rows=rows)

    def linear(self, name: str, shape: tuple[int, int], *, rows: Part = None, cols: Part = None) -> LinearWeight:
        return self._format.linear(self, name, shape=shape, rows=rows, cols=cols)

    def table(self, name: str, shape: tuple[int, int], *, rows: Part = None) -> LinearWeight:
        return self._format.table(self, name, shape=shape, rows=rows)

    def stack(self, name: str, shape: tuple[int, int, int], *, rows: Part = None, cols: Part = None) -> Iterator[LinearWeight]:
        return self._format.stack(self, name, shape=shape, rows=rows, cols=cols)

    @property
    def dtype(self) -> torch.dtype:
        """The model's precision, in which weights are given."""
        return self._dtype

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        rows: Part = None,
        cols: Part = None,
        index: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        if index is not None:  # made one by one, because a stack may be large
            name, shape = f"{name}[{index}]", shape[1:]
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}:{name}".encode()))
        values = torch.randn(shape, generator=generator) * self._std
        if len(shape) == 1 and name.endswith("weight"):
            values += 1.0
        part = values[slice(*(rows or (0, shape[0])))]
        part = part if cols is None else part[:, slice(*cols)]
        return part.to(device=self._device, dtype=dtype or self._dtype).contiguous()
