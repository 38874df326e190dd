"""Keys and values in one byte, with one float32 factor for each token and head.

Symmetric: the largest size of a head's values is mapped to the format's largest value, and the nearest value is stored
(arXiv 2407.07304). A head of zeros has factor 0, one with a value that is not finite has factor NaN, so that it is read back as
NaN. Legend: any leading axes, D head_dim, R size of the first part of a head.
"""

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The formats, and the value that the largest size becomes."""
SMALLEST = 1e-30
"""A head whose values are all below this counts as zeros: a factor with few digits could not tell them apart."""


def quantize(x_D: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values of `dtype` [..., D] and their factors [...] in float32; `dtype` is one of `LARGEST`."""
    x = x_D.to(torch.float32)
    largest = x.abs().amax(dim=-1)
    is_finite, is_zero = largest < torch.inf, largest < SMALLEST
    scales = torch.where(is_finite, torch.where(is_zero, 0.0, largest / LARGEST[dtype]), torch.nan)
    is_known = (is_finite & ~is_zero).unsqueeze(-1)
    values = torch.where(is_known, x / torch.where(is_known, scales.unsqueeze(-1), 1.0), 0.0)
    return (values.round() if dtype == torch.int8 else values).to(dtype), scales


def dequantize(values_D: Tensor, scales: Tensor) -> Tensor:
    """[..., D] float32: what stored values stand for."""
    return values_D.to(torch.float32) * scales.unsqueeze(-1)


def dequantize_parts(values_D: Tensor, scales_2: Tensor, first_size: int) -> Tensor:
    """[..., D] float32 of heads in two parts: the first R values have the first factor, the others the second."""
    parts = values_D[..., :first_size], values_D[..., first_size:]
    return torch.cat([dequantize(part, scales_2[..., index]) for index, part in enumerate(parts)], dim=-1)


def rows_of(pool_N: Tensor, slots: Tensor) -> Tensor:
    """[len(slots), ...]: rows of a pool of one byte a value, as bytes: not every operator takes 8-bit floats on every device."""
    return pool_N.view(torch.uint8).index_select(0, slots).view(pool_N.dtype)


def set_rows(values_T: Tensor, slots_T: Tensor, pool_N: Tensor) -> None:
    """`pool_N[slots_T[t]] = values_T[t]`, in the same way."""
    pool_N.view(torch.uint8).index_copy_(0, slots_T, values_T.view(torch.uint8))
