"""How the linears of a checkpoint are stored, and what they become in memory.

A format turns a name, a shape and a part into a `LinearWeight`; it reads whatever tensors it needs for that. Layers never
learn which format they hold.
"""

from typing import Protocol

import torch
from torch import Tensor

from actorllm.weights.source import DenseWeight, LinearWeight, Part


class TensorReader(Protocol):
    """What a format reads from. Every read claims the name."""

    def has(self, name: str) -> bool:
        """Whether a tensor of this name exists."""
        ...

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        rows: Part = None,
        cols: Part = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A part of a tensor on the model's device; `shape` is the whole tensor's.

        It is stored in floating point and comes in the model's dtype; with `dtype`, it is stored in just that and comes
        as it is (codes). Raises `TensorMissing` or `CheckpointError`.
        """
        ...


class Format(Protocol):
    """Owns the names, the packing and the alignment of a linear's tensors."""

    def linear(self, reader: TensorReader, name: str, shape: tuple[int, int], *, rows: Part, cols: Part) -> LinearWeight:
        """The part `rows` x `cols` of the linear [out, in] called `name`."""
        ...


class PlainFormat:
    """One tensor `name + ".weight"` of floating-point values."""

    def linear(self, reader: TensorReader, name: str, shape: tuple[int, int], *, rows: Part, cols: Part) -> DenseWeight:
        return DenseWeight(reader.read(f"{name}.weight", shape, rows=rows, cols=cols))
