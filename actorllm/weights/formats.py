"""How the linears of a checkpoint are stored, and what they become in memory.

A format turns a name, a shape and a part into a `LinearWeight`; it pulls whatever tensors it needs for that from the
source. Layers never learn which format they hold.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from actorllm.weights.source import LinearWeight, Part, WeightSource


class Format(Protocol):
    """Owns the names, the packing and the alignment of a linear's tensors."""

    def linear(self, source: WeightSource, name: str, shape: tuple[int, int], *, rows: Part, cols: Part) -> LinearWeight:
        """The part `rows` x `cols` of the linear [out, in] called `name`, pulled with `source.tensor`."""
        ...


class DenseWeight(LinearWeight):
    """W [out, in] as it is."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.out_features = weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)

    @classmethod
    def join(cls, parts: list[LinearWeight]) -> "DenseWeight":
        return cls(torch.cat([part.weight for part in parts if isinstance(part, DenseWeight)]))


class PlainFormat:
    """One tensor `name + ".weight"` of floating-point values."""

    def linear(self, source: WeightSource, name: str, shape: tuple[int, int], *, rows: Part, cols: Part) -> DenseWeight:
        return DenseWeight(source.tensor(f"{name}.weight", shape, rows=rows, cols=cols))
