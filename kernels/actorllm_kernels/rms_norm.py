"""Root mean square normalisation (arXiv 1910.07467). Legend: D the normalised size."""

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x_D: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis; the mean in float32, the product in the weight's dtype."""
    return (F.rms_norm(x_D.to(torch.float32), weight_D.shape, eps=eps).to(weight_D.dtype) * weight_D).to(x_D.dtype)
