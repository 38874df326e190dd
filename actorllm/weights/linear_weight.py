"""The forms that a linear's weight has in memory.

A format (formats.py) makes one, a layer calls it and may put siblings side by side. Knows no names and no files.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from actorllm.errors import CheckpointError
from actorllm_kernels.embedding import embedding
from actorllm_kernels.gated import GatedProduct

MAX_TRANSPOSED_ROWS = 64
"""Up to so many rows a CPU computes `(W @ x.T).T` faster than `x @ W.T`, in torch 2.13 by 1.1x to 2.8x."""

PACKED_FOR_ROWS = 64
"""The number of rows that oneDNN lays a packed weight out for; measured, this layout is the best or near it for 1 to 256."""


class LinearWeight(nn.Module):
    """The internal form of a linear's weight: `forward(x)` gives `x @ W.T` for x [..., in], W [out, in].

    Subclasses hold a format's tensors. `join` puts siblings of one class side by side (a fused layer).
    """

    out_features: int
    dtype: torch.dtype
    """Of what it multiplies and gives."""

    def packed(self) -> "LinearWeight":
        """The form that computes fastest on its device, once nothing more will be joined to it."""
        return self

    def dense(self) -> Tensor:
        """W in floating point, for layers that fold it into another product; asked before it is packed."""
        raise CheckpointError(
            f"this model needs the values of a linear that is stored as {type(self).__name__}, which does not give them: "
            "choose a checkpoint in float32, float16 or bfloat16"
        )

    def packed_table(self) -> "LinearWeight":
        """The form that computes fastest of those that still give `rows`."""
        return self

    def rows(self, ids: Tensor) -> Tensor:
        """[len(ids), in]: rows of W, where it is an embedding."""
        return self.dense()[ids]

    def outputs(self, begin: int, end: int) -> "LinearWeight":
        """The weight of some of the outputs; asked before it is packed."""
        return DenseWeight(self.dense()[begin:end])

    def gated(self, x: Tensor, product: GatedProduct) -> Tensor:
        """[.., out / 2]: the product of the halves of the outputs, of which the first are the gates."""
        return product.of_halves(self(x))

    def by_output(self) -> tuple[Tensor, Tensor | None] | None:
        """W [out, ..] as values, or as codes with their scales, as `actorllm_kernels.experts.MatrixStack` has them of one expert;
        None where it is kept otherwise. Asked once it is packed."""
        return None

    @classmethod
    def join(cls, parts: "list[LinearWeight]") -> "LinearWeight | None":
        """One weight with all rows of `parts`, or None if this format keeps siblings apart."""
        return None


class DenseWeight(LinearWeight):
    """W [out, in] as it is."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.out_features = weight.shape[0]
        self.dtype = weight.dtype

    def packed(self) -> LinearWeight:
        return OneDNNWeight(self.weight) if OneDNNWeight.suits(self.weight) else self

    def dense(self) -> Tensor:
        return self.weight.detach()

    def rows(self, ids: Tensor) -> Tensor:
        return embedding(ids, self.weight.detach())

    def by_output(self) -> tuple[Tensor, Tensor | None]:
        return self.weight.detach(), None

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.ndim == 2 and 1 < x.shape[0] <= MAX_TRANSPOSED_ROWS:
            return torch.mm(self.weight, x.t()).t().contiguous()
        return nn.functional.linear(x, self.weight)

    @classmethod
    def join(cls, parts: list[LinearWeight]) -> "DenseWeight":
        return cls(joined([part.weight.detach() for part in parts if isinstance(part, DenseWeight)]))


class OneDNNWeight(LinearWeight):
    """A float32 weight in oneDNN's own layout, for CPUs: a product need not rearrange it first, which for few rows costs
    more than the product."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_FOR_ROWS)
        self.out_features = weight.shape[0]
        self.dtype = weight.dtype

    @staticmethod
    def suits(weight: Tensor) -> bool:
        """Whether this machine's torch has oneDNN and gains by it."""
        return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")


class JoinedWeight(LinearWeight):
    """Siblings that could not be fused (other formats): computed apart, results joined."""

    def __init__(self, parts: list[LinearWeight]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.out_features = sum(part.out_features for part in parts)
        self.dtype = parts[0].dtype

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """`torch.cat(parts)`, which on the meta device would import torch's compiler: 150 MiB, and seconds of every start."""
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for piece, part in zip(whole.split([len(part) for part in parts]), parts, strict=True):
        piece.copy_(part)
    return whole


def join_weights(parts: list[LinearWeight]) -> LinearWeight:
    """Siblings as one linear, packed; fused where all have one format that can be fused."""
    if len(parts) == 1:
        return parts[0].packed()
    joined = type(parts[0]).join(parts) if len({type(part) for part in parts}) == 1 else None
    return joined.packed() if joined is not None else JoinedWeight([part.packed() for part in parts])
