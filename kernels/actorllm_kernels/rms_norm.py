"""Root mean square normalisation (arXiv 1910.07467). Legend: D the normalised size."""

import torch
from torch import Tensor


def rms_norm(x_D: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, computed in float32, returned in x's dtype."""
    x32_D = x_D.to(torch.float32)
    scale = torch.rsqrt(x32_D.square().mean(-1, keepdim=True) + eps)
    return (x32_D * scale).to(x_D.dtype) * weight_D
