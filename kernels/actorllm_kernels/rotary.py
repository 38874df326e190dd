"""Rotary position embedding, half-split form (arXiv 2104.09864). Legend: T tokens, H heads, D head_dim."""

import torch
from torch import Tensor


def rotate(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotate pairs (d, d + D/2) by each token's angles; `cos_T1D` and `sin_T1D` hold both halves."""
    first, second = x_THD.chunk(2, dim=-1)
    return x_THD * cos_T1D + torch.cat((-second, first), dim=-1) * sin_T1D
