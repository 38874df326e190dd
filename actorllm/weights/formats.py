"""How the linears of a checkpoint are stored, and what they become in memory.

A format turns a name, a shape and a part into a `LinearWeight`; it reads whatever tensors it needs for that. Layers never
learn which format they hold.

This module has the plain format; mxfp4.py and others have theirs, and stored.py finds the one that config.json names.
"""

from collections.abc import Iterator
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from actorllm.weights.int_codes import IntCodes
from actorllm.weights.linear_weight import DenseWeight, LinearWeight
from actorllm.weights.source import Part


class TensorReader(Protocol):
    """What a format reads from. Every read claims the name."""

    @property
    def dtype(self) -> torch.dtype:
        """The model's precision."""
        ...

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
        index: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A part of a tensor on the model's device; `shape` is the whole tensor's. With `index`, of a stack just this one.

        It is stored in floating point and comes in the model's dtype, or in `dtype`; with an integer `dtype`, it is stored
        in just that (codes). Raises `TensorMissing` or `CheckpointError`.
        """
        ...


class Format(Protocol):
    """Owns the names, the packing and the alignment of a linear's tensors."""

    def linear(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> LinearWeight:
        """The part `rows` x `cols` of the linear [out, in] called `name`."""
        ...

    def codes(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> IntCodes | None:
        """The same part as integer codes; None where it is stored otherwise."""
        ...

    def table(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part) -> LinearWeight:
        """The part `rows` of the embedding or head [vocabulary, hidden] called `name`."""
        ...

    def stack(
        self, reader: TensorReader, name: str, *, shape: tuple[int, int, int], rows: Part, cols: Part
    ) -> Iterator[LinearWeight]:
        """The part `rows` x `cols` of each linear of the stack [number, out, in] called `name`."""
        ...

    def num_values(self, name: str, shape: tuple[int, ...], *, is_scaled: bool = False) -> int:
        """How many values a tensor of a checkpoint becomes in memory; `is_scaled`: the checkpoint has another one, `name + "_scale"`."""
        ...


class PlainFormat:
    """One tensor `name + ".weight"` of floating-point values; a stack is one tensor called `name`."""

    def linear(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> LinearWeight:
        return DenseWeight(reader.read(f"{name}.weight", shape, rows=rows, cols=cols))

    def codes(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> IntCodes | None:
        return None

    def table(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part) -> LinearWeight:
        return self.linear(reader, name, shape=shape, rows=rows, cols=None)

    def stack(
        self, reader: TensorReader, name: str, *, shape: tuple[int, int, int], rows: Part, cols: Part
    ) -> Iterator[LinearWeight]:
        for index in range(shape[0]):
            yield DenseWeight(reader.read(name, shape, index=index, rows=rows, cols=cols))

    def num_values(self, name: str, shape: tuple[int, ...], *, is_scaled: bool = False) -> int:
        return prod(shape)
