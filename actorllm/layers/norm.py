"""Normalisation layers. Legend: T tokens, H heads of this rank, D the normalised size."""

import torch
from torch import Tensor, nn

from actorllm.layers.linear import sibling
from actorllm.weights.source import WeightSource
from actorllm_kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last axis (arXiv 1910.07467).

    With `weight_offset`, the factor is the checkpoint's weight plus the offset, and the product is made in float32 (Gemma
    stores what differs from 1).
    """

    def __init__(self, size: int, *, eps: float, weight_offset: float = 0.0) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.weight_offset = weight_offset
        self.weight: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        weight = source.tensor(f"{prefix}weight", (self.size,))
        self.weight = weight.to(torch.float32) + self.weight_offset if self.weight_offset else weight

    def unload(self) -> None:
        self.weight = None

    def forward(self, x_TD: Tensor) -> Tensor:
        assert self.weight is not None, "the layer has no weights yet"
        return rms_norm(x_TD, self.weight, eps=self.eps)

    def after_add(self, x_TD: Tensor, y_TD: Tensor) -> tuple[Tensor, Tensor]:
        """`x + y`, and it normalised: one operator for what two layers of a residual stream have between them."""
        assert self.weight is not None, "the layer has no weights yet"
        return add_rms_norm(x_TD, y_TD, self.weight, eps=self.eps)


class LayerNorm(nn.Module):
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last axis (arXiv 1607.06450), each if there is one.

    The statistics are in float32 whatever x's dtype.
    """

    def __init__(self, size: int, *, eps: float, has_weight: bool = True, has_bias: bool = True) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.has_weight = has_weight
        self.has_bias = has_bias
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        self.weight = source.tensor(f"{prefix}weight", (self.size,)) if self.has_weight else None
        self.bias = source.tensor(f"{prefix}bias", (self.size,)) if self.has_bias else None

    def unload(self) -> None:
        self.weight = self.bias = None

    def forward(self, x_TD: Tensor) -> Tensor:
        assert self.weight is not None or not self.has_weight, "the layer has no weights yet"
        return layer_norm(x_TD, weight_D=self.weight, bias_D=self.bias, eps=self.eps)

    def after_add(self, x_TD: Tensor, y_TD: Tensor) -> tuple[Tensor, Tensor]:
        """`x + y`, and it normalised."""
        assert self.weight is not None or not self.has_weight, "the layer has no weights yet"
        return add_layer_norm(x_TD, y_TD, weight_D=self.weight, bias_D=self.bias, eps=self.eps)


Norm = RMSNorm | LayerNorm
"""A norm of hidden states."""


class HeadNorm(nn.Module):
    """[T, H, D] -> [T, H, D]: each head's values normalised as by a LayerNorm without bias, with a weight for each head.

    A rank holds the weights of its `heads`. The checkpoint has one tensor [num_heads, D], or one tensor [D] for each head,
    which `name_of_head` names with a `{}` for the head's number, beside this module.
    """

    def __init__(self, num_heads: int, size: int, *, heads: tuple[int, int], eps: float, name_of_head: str | None = None) -> None:
        super().__init__()
        self.shape = (num_heads, size)
        self.heads = heads
        self.eps = eps
        self.name_of_head = name_of_head
        self.weight_HD: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        if self.name_of_head is None:
            self.weight_HD = source.tensor(f"{prefix}weight", self.shape, rows=self.heads)
            return
        names = [sibling(prefix, self.name_of_head.format(head)) for head in range(self.shape[0])]
        weights = [source.tensor(f"{name}.weight", self.shape[1:]) for name in names]  # of all heads: a rank claims every name
        self.weight_HD = torch.stack(weights[slice(*self.heads)])

    def unload(self) -> None:
        self.weight_HD = None

    def forward(self, x_THD: Tensor) -> Tensor:
        assert self.weight_HD is not None, "the layer has no weights yet"
        normed_THD = layer_norm(x_THD.to(torch.float32), weight_D=None, bias_D=None, eps=self.eps)
        return (normed_THD * self.weight_HD).to(x_THD.dtype)
