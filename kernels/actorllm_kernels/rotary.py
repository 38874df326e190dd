"""Rotary position embedding (arXiv 2104.09864).

Legend: T tokens, H heads, D head_dim, R rotated size of a head (R <= D): only its first R values are rotated.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def rotate(x_THD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    """Rotate pairs (r, r + R/2) by each token's angles; `cos_T1R` and `sin_T1R` hold both halves."""
    return _rotate_first(x_THD, cos_T1R, sin_T1R, turn=_turn_halves)


def rotate_interleaved(x_THD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    """Rotate pairs (2r, 2r + 1) by each token's angles; `cos_T1R` and `sin_T1R` hold each angle twice in a row."""
    return _rotate_first(x_THD, cos_T1R, sin_T1R, turn=_turn_neighbours)


def _rotate_first(x_THD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, *, turn: Callable[[Tensor], Tensor]) -> Tensor:
    size = cos_T1R.shape[-1]
    if size == x_THD.shape[-1]:
        return x_THD * cos_T1R + turn(x_THD) * sin_T1R
    x_THR, rest = x_THD[..., :size], x_THD[..., size:]
    return torch.cat((x_THR * cos_T1R + turn(x_THR) * sin_T1R, rest), dim=-1)


def _turn_halves(x_THR: Tensor) -> Tensor:
    first, second = x_THR.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _turn_neighbours(x_THR: Tensor) -> Tensor:
    even, odd = x_THR.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-odd, even), dim=-1).flatten(-2)
