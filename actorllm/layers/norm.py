"""Normalisation layers. Replicated on every rank. Legend: T tokens, D the normalised size."""

import torch
from torch import Tensor, nn

from actorllm.weights.source import WeightSource
from actorllm_kernels.rms_norm import rms_norm


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
