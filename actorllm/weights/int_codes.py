"""Linears as small integers with a scale for each row, or for each group of a row's inputs.

`W[o, i] = scale[o, g] * (code[o, i] - zero[o, g])`, where input i belongs to group g. Knows neither names nor files; what
compressed-tensors checkpoints make of it is in compressed.py.

Legend: O outputs, I inputs, G groups of a row's inputs, S inputs of a group, W words of 32 bits.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

SHARES = {8: (1.0,), 4: (1.0, 0.92, 0.84, 0.76, 0.68)}
"""By bits: which shares of a group's largest value are tried as the largest code's. Eight bits have no need to cut off any."""

MAX_VALUES = 2**18
"""Values that are quantized at once, so that their copies in float32 stay in the caches."""


@dataclass(frozen=True)
class IntCodes:
    """Signed codes [O, I] int8 of `num_bits`, scales [O, G] float32, zeros [O, G] int8 (None: all zero), and each input's group
    [I] (None: there is one). `is_even`: the inputs are G groups of equal length, one after another."""

    codes_OI: Tensor
    scale_OG: Tensor
    zero_OG: Tensor | None = None
    group_I: Tensor | None = None
    num_bits: int = 8
    is_even: bool = True

    @classmethod
    def quantized(cls, weight_OI: Tensor, *, num_bits: int, group_len: int | None, scale_dtype: torch.dtype) -> Self:
        """Symmetric codes of 4 or 8 bits for groups of `group_len` inputs (None: rows), which divides the inputs.

        Scales are rounded to `scale_dtype` before codes are chosen. Of a few scales each group takes the one with the smallest
        squared error. Raises `ValueError` if a value is not finite.
        """
        num_inputs = weight_OI.shape[1]
        group_len = group_len or num_inputs
        parts = [
            _quantize(rows_OI.float().unflatten(1, (-1, group_len)), num_bits=num_bits, scale_dtype=scale_dtype)
            for rows_OI in weight_OI.split(max(1, MAX_VALUES // num_inputs))
        ]
        codes_OI, scale_OG = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        group_I = torch.arange(num_inputs, device=weight_OI.device) // group_len if group_len < num_inputs else None
        return cls(codes_OI, scale_OG, group_I=group_I, num_bits=num_bits)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """W [O, I]."""
        codes_OI = self.codes_OI.float()
        if self.zero_OG is not None:
            codes_OI = codes_OI - self._by_input(self.zero_OG)
        return (codes_OI * self._by_input(self.scale_OG)).to(dtype)

    def _by_input(self, values_OG: Tensor) -> Tensor:
        return values_OG if self.group_I is None else values_OG[:, self.group_I]


def _quantize(weight_OGS: Tensor, *, num_bits: int, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(codes [O, I], scales [O, G] float32)."""
    if not weight_OGS.isfinite().all():
        raise ValueError("it holds values that are not finite")
    top = 2 ** (num_bits - 1)
    low_OG1, high_OG1 = weight_OGS.amin(dim=-1, keepdim=True), weight_OGS.amax(dim=-1, keepdim=True)
    extreme_OG1 = torch.where(high_OG1 > -low_OG1, high_OG1, low_OG1)
    scales = [extreme_OG1.abs() * share / (top - 1) for share in SHARES[num_bits]]
    if num_bits == 4:  # the lowest code reaches further than the highest: with this sign it is the extreme's
        scales += [extreme_OG1 * (-share / top) for share in SHARES[num_bits]]
    best_OG1, least_OG1 = scales[0], torch.full_like(extreme_OG1, torch.inf)
    for scale_OG1 in scales:
        scale_OG1 = scale_OG1.to(scale_dtype).float()
        scale_OG1 = torch.where(scale_OG1 == 0, 1.0, scale_OG1)  # of values that are all zero, or too small for the scale's type
        codes_OGS = _nearest(weight_OGS, scale_OG1, top)
        error_OG1 = codes_OGS.mul_(scale_OG1).sub_(weight_OGS).square_().sum(dim=-1, keepdim=True)
        best_OG1 = torch.where(error_OG1 < least_OG1, scale_OG1, best_OG1)
        least_OG1 = torch.minimum(error_OG1, least_OG1)
    return _nearest(weight_OGS, best_OG1, top).to(torch.int8).flatten(1), best_OG1.squeeze(-1)


def _nearest(weight_OGS: Tensor, scale_OG1: Tensor, top: int) -> Tensor:
    """The codes whose values are nearest, in float32."""
    return (weight_OGS / scale_OG1).round_().clamp_(-top, top - 1)


def pack(codes_OI: Tensor, num_bits: int) -> Tensor:
    """Signed codes of 4 or 8 bits as [O, W] int32, each row filled up with zero bits; the first code is in the lowest bits."""
    bytes_OI = (codes_OI.to(torch.int16) + 2 ** (num_bits - 1)).to(torch.uint8)
    missing = -codes_OI.shape[1] % (32 // num_bits)
    bytes_OI = torch.nn.functional.pad(bytes_OI, (0, missing))
    if num_bits == 4:
        bytes_OI = bytes_OI[:, ::2] | bytes_OI[:, 1::2] << 4
    return bytes_OI.contiguous().view(torch.int32)


def unpack(words_OW: Tensor, num_bits: int) -> Tensor:
    """Signed codes [O, as many as fit into W words] int8, of 4 or 8 bits."""
    bytes_OI = words_OW.clone(memory_format=torch.contiguous_format).view(torch.uint8)  # one column may have any stride otherwise
    if num_bits == 4:
        bytes_OI = torch.stack((bytes_OI & 15, bytes_OI >> 4), dim=-1).flatten(1)
    return (bytes_OI.to(torch.int16) - 2 ** (num_bits - 1)).to(torch.int8)
