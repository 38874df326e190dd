"""What a product with weights of a few bits means, in torch operators: the specification.

Symmetric: a factor for each G inputs of an output maps the largest size to 127 (8 bits) or 7 (4 bits). Of 4 bits, byte j of an output
holds input j in its low half and input j + K/2 in its high half, each plus 8, so that a kernel reads both halves of x in a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

OFFSET = 8
"""Codes of 4 bits are kept as numbers without a sign."""


@dataclass(frozen=True)
class IntWeight:
    """`codes` int8 [N, K], or uint8 [N, K/2] of 4 bits; `scales_NG` [N, K/G] float32."""

    codes: Tensor
    scales_NG: Tensor

    @property
    def is_packed(self) -> bool:
        """Whether there are two codes in a byte."""
        return self.codes.dtype == torch.uint8

    @property
    def num_inputs(self) -> int:
        """K."""
        return self.codes.shape[1] * (2 if self.is_packed else 1)

    @property
    def group_len(self) -> int:
        """G."""
        return self.num_inputs // self.scales_NG.shape[1]

    def dense(self) -> Tensor:
        """[N, K] float32."""
        codes = torch.cat((self.codes & 0xF, self.codes >> 4), dim=1).to(torch.int8) - OFFSET if self.is_packed else self.codes
        return (codes.to(torch.float32).unflatten(1, (-1, self.group_len)) * self.scales_NG.unsqueeze(-1)).flatten(1)


def quantize_weight(weight_NK: Tensor, *, num_bits: int, group_len: int | None = None) -> IntWeight:
    """Nearest codes of 8 or 4 bits, with a factor for each `group_len` inputs (None: for each output)."""
    groups = weight_NK.to(torch.float32).unflatten(1, (-1, group_len or weight_NK.shape[1]))
    scales_NG = groups.abs().amax(dim=-1) / (2 ** (num_bits - 1) - 1)
    codes = (groups / torch.where(scales_NG == 0, 1.0, scales_NG).unsqueeze(-1)).round().to(torch.int8).flatten(1)
    return IntWeight(codes if num_bits == 8 else pack(codes), scales_NG)


def pack(codes_NK: Tensor) -> Tensor:
    """uint8 [N, K/2]: codes from -8 to 7, two in a byte."""
    low, high = (codes_NK + OFFSET).to(torch.uint8).chunk(2, dim=1)
    return low | (high << 4)


def linear_int(x_MK: Tensor, weight: IntWeight, bias_N: Tensor | None = None) -> Tensor:
    """[M, N] in x's dtype; the weights are made dense in it."""
    return F.linear(x_MK, weight.dense().to(x_MK.dtype), None if bias_N is None else bias_N.to(x_MK.dtype))
