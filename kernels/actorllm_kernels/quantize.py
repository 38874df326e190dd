"""Keys and values in one byte, with one float32 factor for each token and head.

Symmetric: the largest size of a head's values is mapped to the format's largest value, and the nearest value is stored
(arXiv 2407.07304). A head of zeros has factor 0. Legend: any leading axes, D head_dim.
"""

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The formats, and the value that the largest size becomes."""


def quantize(x_D: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values of `dtype` [..., D] and their factors [...] in float32; `dtype` is one of `LARGEST`."""
    x = x_D.to(torch.float32)
    scales = x.abs().amax(dim=-1) / LARGEST[dtype]
    values = x / torch.where(scales == 0, 1.0, scales).unsqueeze(-1)
    return (values.round() if dtype == torch.int8 else values).to(dtype), scales


def dequantize(values_D: Tensor, scales: Tensor) -> Tensor:
    """[..., D] float32: what stored values stand for."""
    return values_D.to(torch.float32) * scales.unsqueeze(-1)
