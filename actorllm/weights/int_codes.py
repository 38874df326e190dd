"""Linears as small integers with a scale for each row, or for each group of a row's inputs.

`W[o, i] = scale[o, g] * (code[o, i] - zero[o, g])`, where input i belongs to group g. Knows neither names nor files; what
compressed-tensors checkpoints make of it is in compressed.py.

On the meta device nothing is computed: torch would import its compiler, which takes 150 MiB and seconds of every start.

Legend: O outputs, I inputs, G groups of a row's inputs, S inputs of a group, W words of 32 bits.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from actorllm_kernels.linear.reference import int4_codes, int8_codes


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
    def quantized(cls, weight_OI: Tensor, *, num_bits: int, group_len: int | None) -> Self:
        """Symmetric codes of 4 or 8 bits for groups of `group_len` inputs (None: rows), which divides the inputs.

        They are what linears are rounded to while they are loaded, with scales that bfloat16 holds. Raises `ValueError` if a value
        is not finite.
        """
        if not weight_OI.isfinite().all():
            raise ValueError("it holds values that are not finite")
        num_outputs, num_inputs = weight_OI.shape
        group_len = group_len or num_inputs
        if num_bits == 4:
            codes_OI, scale_OG = int4_codes(weight_OI, group_len)
        else:  # a group is to it what an output is to the kernels
            codes, scales = int8_codes(weight_OI.reshape(-1, group_len))
            codes_OI, scale_OG = codes.view(num_outputs, num_inputs), scales.view(num_outputs, -1)
        group_I = torch.arange(num_inputs, device=weight_OI.device) // group_len if group_len < num_inputs else None
        return cls(codes_OI, scale_OG.to(torch.float32), group_I=group_I, num_bits=num_bits)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """W [O, I]."""
        if self.codes_OI.device.type == "meta":
            return torch.empty_like(self.codes_OI, dtype=dtype)
        codes_OI = self.codes_OI.float()
        if self.zero_OG is not None:
            codes_OI = codes_OI - self._by_input(self.zero_OG)
        return (codes_OI * self._by_input(self.scale_OG)).to(dtype)

    def _by_input(self, values_OG: Tensor) -> Tensor:
        return values_OG if self.group_I is None else values_OG[:, self.group_I]


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
    if words_OW.device.type == "meta":
        return words_OW.new_empty(len(words_OW), words_OW.shape[1] * (32 // num_bits), dtype=torch.int8)
    bytes_OI = words_OW.clone(memory_format=torch.contiguous_format).view(torch.uint8)  # one column may have any stride otherwise
    if num_bits == 4:
        bytes_OI = torch.stack((bytes_OI & 15, bytes_OI >> 4), dim=-1).flatten(1)
    return (bytes_OI.to(torch.int16) - 2 ** (num_bits - 1)).to(torch.int8)
