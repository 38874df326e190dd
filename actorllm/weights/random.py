"""Random weights by name: the same whole tensor for every shard, without a file.

For tests and benchmarks. Each tensor's values depend on its name, the whole shape and the seed alone.
"""

import zlib

import torch
from torch import Tensor

from actorllm.weights.formats import Format, PlainFormat
from actorllm.weights.source import LinearWeight, Part


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
        return self._format.linear(self, name, shape, rows=rows, cols=cols)

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        rows: Part = None,
        cols: Part = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}:{name}".encode()))
        values = torch.randn(shape, generator=generator) * self._std
        if len(shape) == 1 and name.endswith("weight"):
            values += 1.0
        part = values[slice(*(rows or (0, shape[0])))]
        part = part if cols is None else part[:, slice(*cols)]
        return part.to(device=self._device, dtype=dtype or self._dtype).contiguous()
