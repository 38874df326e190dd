"""Normalisation layers. Replicated on every rank. Legend: T tokens, D the normalised size."""

from torch import Tensor, nn

from actorllm.weights.source import WeightSource
from actorllm_kernels.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last axis (arXiv 1910.07467)."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.weight: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        self.weight = source.tensor(f"{prefix}weight", (self.size,))

    def unload(self) -> None:
        self.weight = None

    def forward(self, x_TD: Tensor) -> Tensor:
        assert self.weight is not None, "the layer has no weights yet"
        return rms_norm(x_TD, self.weight, eps=self.eps)
