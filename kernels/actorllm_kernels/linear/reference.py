"""What the linears compute, in plain torch operators: the specification of the kernels, and what runs without them.

Codes are the same on every device, but packed as its kernels read them. For CPUs they lie in panels: the weights of `PANEL`
outputs for two inputs (or four) are neighbours, so that a product reads memory in one direction; integer products round each row
of activations to 8 bits with a scale of its own, after LLM.int8() (arXiv 2208.07339) without outliers. For GPUs they lie output
by output (`IntWeight`), and activations stay as they are. Groups of 4-bit weights have scales after GPTQ's (arXiv 2210.17323).

Legend: T rows (tokens), I inputs, O outputs, P panels, B = PANEL outputs of one panel, J pairs, Q quads and E octets
of inputs, G groups of inputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from actorllm_kernels.quantize import dequantize, quantize

PANEL = 16
LARGEST = 127
"""The largest code of 8 bits; -128 is not used."""
SCALE_DIVISORS = (-8.0, -8.6, -9.4, -7.4, 7.0)
"""What the weight of largest magnitude in a group of 4-bit weights is tried to become."""
MOST_UNITS = 15
"""The largest scale of an output's groups of 4-bit weights, in the unit that its scales are multiples of."""
UNIT_FACTORS = (1.0, 1.07, 0.94)
"""Neighbours of the unit for which an output's largest weight becomes 8 of its largest scale; there are 8 to an octave."""
BLOCK_VALUES = 2**20
"""Weights that become codes at once."""
EXPANDED_VALUES = 2**24
"""Codes that are expanded at once for a product of many rows: enough outputs to keep a GPU busy, in 64 MiB of float32."""
SMALLEST_ROW = 1e-30
"""A row whose values are all below counts as zero: the reciprocal of its scale would not be finite."""


def bf16_codes(w_OI: Tensor) -> Tensor:
    """[O, I] bfloat16, rounded to nearest even."""
    return w_OI.to(torch.bfloat16)


def pack_bf16(w_OI: Tensor) -> Tensor:
    """[P, J, B, 2] bfloat16: the weights in panels, pairs of inputs side by side; what is missing of the last ones is filled with zeros."""
    whole = _filled(w_OI, outputs=PANEL, inputs=2)
    return whole.view(len(whole) // PANEL, PANEL, whole.shape[1] // 2, 2).transpose(1, 2).contiguous()


def rows_bf16(packed_PJB2: Tensor, outputs: Tensor, num_inputs: int) -> Tensor:
    """[len(outputs), I] float32: rows of the matrix that was packed."""
    return packed_PJB2[outputs // PANEL, :, outputs % PANEL].flatten(1)[:, :num_inputs].to(torch.float32)


def linear_bf16(x_TI: Tensor, packed_PJB2: Tensor, num_outputs: int) -> Tensor:
    """[T, O] float32: `x @ w.T` of float32 rows and packed bfloat16 weights, as if the weights were float32."""
    w_OI = packed_PJB2.to(torch.float32).transpose(1, 2).flatten(2).flatten(0, 1)
    return x_TI @ w_OI[:num_outputs, : x_TI.shape[1]].T


def _filled(w_OI: Tensor, *, outputs: int, inputs: int = 1) -> Tensor:
    """Filled up with zeros to multiples of so many; `pad` copies what is whole already, and a vocabulary is large."""
    rest = -w_OI.shape[0] % outputs, -w_OI.shape[1] % inputs
    return pad(w_OI, (0, rest[1], 0, rest[0])) if any(rest) else w_OI.contiguous()


def row_codes(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [T, I] int8 and scales [T]: a row's scale is its largest magnitude / 127, its codes are x / scale, rounded to even.

    A row with a value that is not finite has the scale NaN, so that all of its results are NaN.
    """
    largest_T = x_TI.abs().amax(dim=1) if x_TI.shape[1] else x_TI.new_zeros(len(x_TI))
    is_plain = largest_T.isfinite() & (largest_T >= SMALLEST_ROW)
    factor_T = torch.where(is_plain, largest_T.new_tensor(LARGEST) / largest_T, 0.0)  # a plain number would become a reciprocal
    x_TI = torch.where(is_plain.unsqueeze(1), x_TI, 0.0)
    codes_TI = (x_TI.double() * factor_T.double().unsqueeze(1)).round().to(torch.int8)
    scales_T = torch.where(is_plain, largest_T / LARGEST, torch.where(largest_T.isfinite(), 0.0, torch.nan))
    return codes_TI, scales_T


def in_blocks(codes_of: Callable[[Tensor], tuple[Tensor, Tensor]], w_OI: Tensor) -> tuple[Tensor, Tensor]:
    """`codes_of` the weights, some outputs at a time: what it needs meanwhile is several times what it gives."""
    rows = max(1, BLOCK_VALUES // max(1, w_OI.shape[1]))
    if len(w_OI) <= rows:
        return codes_of(w_OI)
    codes, scales = (part.new_empty(len(w_OI), *part.shape[1:]) for part in codes_of(w_OI[:1]))
    for begin in range(0, len(w_OI), rows):
        codes[begin : begin + rows], scales[begin : begin + rows] = codes_of(w_OI[begin : begin + rows])
    return codes, scales


def int8_codes(w_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [O, I] int8 and scales [O] float32: the largest magnitude of an output's weights is 127 scales, but for rounding.

    Scales are rounded to bfloat16 before codes are chosen: a checkpoint that keeps them in 16 bits then has just these.
    """
    return in_blocks(_int8_codes, w_OI)


def _int8_codes(w_OI: Tensor) -> tuple[Tensor, Tensor]:
    w_OI = w_OI.to(torch.float32)
    scales_O = row_codes(w_OI)[1].to(torch.bfloat16).to(torch.float32)
    codes_OI = w_OI / torch.where(scales_O > 0, scales_O, 1.0).unsqueeze(1)
    return codes_OI.nan_to_num_(0.0).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), scales_O


def pack_int8(codes_OI: Tensor, scales_O: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [P, Q, B, 4] and scales [P, B], filled up with zeros."""
    num_outputs = len(codes_OI)
    whole = _filled(codes_OI, outputs=PANEL, inputs=4)
    num_panels = len(whole) // PANEL
    packed_PQB4 = whole.view(num_panels, PANEL, whole.shape[1] // 4, 4).transpose(1, 2).contiguous()
    return packed_PQB4, pad(scales_O, (0, -num_outputs % PANEL)).view(num_panels, PANEL)


def rows_int8(packed_PQB4: Tensor, scales_PB: Tensor, outputs: Tensor, num_inputs: int) -> Tensor:
    """[len(outputs), I] float32: rows of the matrix that was packed."""
    panels, places = outputs // PANEL, outputs % PANEL
    codes = packed_PQB4[panels, :, places].flatten(1)[:, :num_inputs]
    return codes * scales_PB[panels, places].unsqueeze(1)


def linear_int8(x_TI: Tensor, packed_PQB4: Tensor, scales_PB: Tensor, num_outputs: int) -> Tensor:
    """[T, O] float32: the product of the rows' codes and the weights' codes, times both scales."""
    codes_TI, scales_T = row_codes(x_TI)
    w_OI = packed_PQB4.transpose(1, 2).flatten(0, 1).flatten(1)[:num_outputs, : x_TI.shape[1]]
    return (codes_TI.float() @ w_OI.float().T) * scales_T.unsqueeze(1) * scales_PB.flatten()[:num_outputs]


def int4_codes(w_OI: Tensor, group_len: int) -> tuple[Tensor, Tensor]:
    """Codes [O, I] int8 within -8..7 and scales [O, G] bfloat16, one for each `group_len` inputs.

    An output's scales are whole numbers of a unit, -15 to 15, so that a code times that number is a signed byte, which processors
    multiply by many rows at a time; it costs some 2% of the squared error. Of some units, and of some scales for which a group's
    weight of largest magnitude becomes -8 or a little more, those with the least squared error.
    """
    return in_blocks(partial(_int4_codes, group_len=group_len), w_OI)


def _int4_codes(w_OI: Tensor, group_len: int) -> tuple[Tensor, Tensor]:
    num_outputs, num_inputs = w_OI.shape
    w_OGI = pad(w_OI.to(torch.float32), (0, -num_inputs % group_len)).view(num_outputs, -(-num_inputs // group_len), group_len)
    if not w_OGI.numel():
        return w_OI.to(torch.int8), w_OGI.new_empty(w_OGI.shape[:2], dtype=torch.bfloat16)
    extreme_OG1 = w_OGI.gather(2, w_OGI.abs().argmax(dim=2, keepdim=True))
    largest_O11 = extreme_OG1.abs().amax(dim=1, keepdim=True)
    is_largest_OG1 = extreme_OG1.abs() == largest_O11
    units = [_of_four_bits(largest_O11 / (8 * MOST_UNITS) * factor) for factor in UNIT_FACTORS]
    tries = [_codes_in_units(w_OGI, extreme_OG1, is_largest_OG1, unit_O11, SCALE_DIVISORS[:1])[2] for unit_O11 in units]
    unit_O11 = torch.stack(units).gather(0, torch.stack(tries).argmin(dim=0, keepdim=True))[0]
    codes, scale_OG1, _ = _codes_in_units(w_OGI, extreme_OG1, is_largest_OG1, unit_O11, SCALE_DIVISORS)
    return codes.to(torch.int8).flatten(1)[:, :num_inputs].contiguous(), scale_OG1.squeeze(2).to(torch.bfloat16)


def _codes_in_units(
    w_OGI: Tensor, extreme_OG1: Tensor, is_largest_OG1: Tensor, unit_O11: Tensor, divisors: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [O, G, I], their scales [O, G, 1] in whole units, and the squared errors of outputs [O, 1, 1]: for each group the best of
    some scales by which its extreme weight becomes a divisor. The largest scale is of MOST_UNITS, so that it tells the unit."""
    best = least_OG1 = None
    for divisor in divisors:
        wanted_OG1 = extreme_OG1 / divisor
        count_OG1 = (wanted_OG1 / unit_O11).round_().clamp_(-MOST_UNITS, MOST_UNITS)
        count_OG1 = torch.where(count_OG1 == 0, wanted_OG1.sign(), count_OG1)
        scale_OG1 = torch.where(is_largest_OG1, wanted_OG1.sign() * MOST_UNITS, count_OG1) * unit_O11
        codes = (w_OGI / scale_OG1).nan_to_num_(0.0).round_().clamp_(-8, 7)
        error_OG1 = (codes * scale_OG1 - w_OGI).square_().sum(dim=2, keepdim=True)
        if best is None or least_OG1 is None:
            best, least_OG1 = (codes, scale_OG1), error_OG1
        else:
            is_better = error_OG1 < least_OG1
            best = torch.where(is_better, codes, best[0]), torch.where(is_better, scale_OG1, best[1])
            least_OG1 = torch.minimum(error_OG1, least_OG1)
    assert best is not None and least_OG1 is not None
    return *best, least_OG1.sum(dim=1, keepdim=True)


def _of_four_bits(x: Tensor) -> Tensor:
    """The nearest numbers with four significant bits, whose products with 1 to 15 a bfloat16 holds."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 16).round_() / 16, exponent)


def int4_values(codes_OI: Tensor, scales_OG: Tensor, group_len: int) -> Tensor:
    """[O, I] float32: what codes stand for."""
    return codes_OI * scales_OG.to(torch.float32).repeat_interleave(group_len, dim=1)[:, : codes_OI.shape[1]]


def pack_int4(codes_OI: Tensor, scales_OG: Tensor, group_len: int) -> tuple[Tensor, Tensor]:
    """Bytes [P, E, B, 4], of an octet's inputs 0-3 in the lower bits and 4-7 in the upper ones, code + 8; scales [P, G, B]."""
    num_outputs = len(codes_OI)
    whole = _filled(codes_OI, outputs=PANEL, inputs=group_len)
    num_panels = len(whole) // PANEL
    halves = (whole + 8).to(torch.uint8).view(num_panels, PANEL, whole.shape[1] // 8, 2, 4)
    packed_PEB4 = (halves[:, :, :, 0] | (halves[:, :, :, 1] << 4)).transpose(1, 2).contiguous()
    scales = pad(scales_OG, (0, 0, 0, -num_outputs % PANEL)).view(num_panels, PANEL, scales_OG.shape[1])
    return packed_PEB4, scales.transpose(1, 2).contiguous()


def rows_int4(packed_PEB4: Tensor, scales_PGB: Tensor, outputs: Tensor, num_inputs: int) -> Tensor:
    """[len(outputs), I] float32: rows of the matrix that was packed."""
    panels, places = outputs // PANEL, outputs % PANEL
    packed = packed_PEB4[panels, :, places]
    codes = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1).to(torch.int8) - 8
    scales = scales_PGB[panels, :, places]
    group_len = codes.shape[1] // scales.shape[1] if scales.shape[1] else 1
    return int4_values(codes[:, :num_inputs], scales, group_len)


def linear_int4(x_TI: Tensor, packed_PEB4: Tensor, scales_PGB: Tensor, num_outputs: int) -> Tensor:
    """[T, O] float32: the product of the rows' codes and the weights, times the rows' scales."""
    codes_TI, scales_T = row_codes(x_TI)
    outputs = torch.arange(num_outputs, device=x_TI.device)
    return (codes_TI.float() @ rows_int4(packed_PEB4, scales_PGB, outputs, x_TI.shape[1]).T) * scales_T.unsqueeze(1)


OFFSET = 8
"""Codes of 4 bits are packed as numbers without a sign."""
LEAST_GROUP = 16
"""Inputs of a group that a GPU's kernel still takes: the fewest that matrix units sum at once."""


@dataclass(frozen=True)
class IntWeight:
    """A matrix of codes output by output: `codes_OI` int8 [O, I], or uint8 [O, I/2] of 4 bits; `scales_OG` [O, G] float32.

    Of 4 bits, byte j of an output holds input j in its low half and input j + I/2 in its high half, so that a kernel reads both
    halves of a row of activations in their order.
    """

    codes_OI: Tensor
    scales_OG: Tensor

    @property
    def is_packed(self) -> bool:
        """Whether there are two codes in a byte."""
        return self.codes_OI.dtype == torch.uint8

    @property
    def num_bits(self) -> int:
        """Of one code."""
        return 4 if self.is_packed else 8

    @property
    def num_inputs(self) -> int:
        """I."""
        return self.codes_OI.shape[1] * (2 if self.is_packed else 1)

    @property
    def form(self) -> str:
        """What kernels are checked for."""
        return f"int{self.num_bits}" + (" in groups" if self.group_len < self.num_inputs else "")

    @property
    def group_len(self) -> int:
        """Inputs with one scale."""
        return self.num_inputs // max(1, self.scales_OG.shape[1])

    def values(self) -> Tensor:
        """[O, I] float32."""
        codes_OI = self.codes_OI
        if self.is_packed:
            codes_OI = torch.cat((codes_OI & 15, codes_OI >> 4), dim=1).to(torch.int8) - OFFSET
        num_groups = self.scales_OG.shape[1]
        codes_OGI = codes_OI.unflatten(1, (num_groups, self.group_len))  # scales are not copied for each code
        return (codes_OGI * self.scales_OG.to(torch.float32).unsqueeze(2)).flatten(1)

    def rows(self, outputs: Tensor | slice) -> "IntWeight":
        """Some of the outputs."""
        return IntWeight(self.codes_OI[outputs], self.scales_OG[outputs])


def pack_by_output(codes_OI: Tensor, scales_OG: Tensor, *, num_bits: int) -> IntWeight:
    """Codes int8 with a scale for each of G equal groups; 4 bits are filled up to an even number of inputs with zeros.

    A group of 4-bit codes that would lie across both halves of a row becomes several with one scale, so that none does.
    """
    scales_OG = scales_OG.to(torch.float32)
    if num_bits == 8:
        return IntWeight(codes_OI.contiguous(), scales_OG.contiguous())
    codes_OI = pad(codes_OI, (0, codes_OI.shape[1] % 2))
    half, num_groups = codes_OI.shape[1] // 2, scales_OG.shape[1]
    if num_groups > 1:
        group_len = codes_OI.shape[1] // num_groups
        scales_OG = scales_OG.repeat_interleave(group_len // math.gcd(group_len, half), dim=1)
    low_OI, high_OI = (codes_OI + OFFSET).to(torch.uint8).chunk(2, dim=1) if half else (codes_OI.to(torch.uint8),) * 2
    return IntWeight(low_OI | (high_OI << 4), scales_OG.contiguous())


def linear_weight_only(x_TI: Tensor, weight: IntWeight) -> Tensor:
    """[T, O] in x's dtype, which the weights' values are rounded to, `EXPANDED_VALUES` at a time: the memory that this takes is a
    few times that, however large the matrix is."""
    num_outputs, block = len(weight.codes_OI), max(1, EXPANDED_VALUES // max(1, weight.num_inputs))
    if num_outputs <= block:
        return linear(x_TI, weight.values().to(x_TI.dtype))
    out_TO = x_TI.new_empty(*x_TI.shape[:-1], num_outputs)
    for begin in range(0, num_outputs, block):
        some = slice(begin, begin + block)
        out_TO[..., some] = linear(x_TI, weight.rows(some).values().to(x_TI.dtype))
    return out_TO


def fp8_codes(w_OI: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit floats (e4m3) as bytes [O, I], and scales [O] float32: the largest magnitude of a row becomes the largest float."""
    if not w_OI.shape[1]:
        return w_OI.to(torch.uint8), w_OI.new_zeros(len(w_OI), dtype=torch.float32)
    codes_OI, scales_O = quantize(w_OI, torch.float8_e4m3fn)
    return codes_OI.view(torch.uint8), scales_O


def fp8_values(codes_OI: Tensor, scales_O: Tensor) -> Tensor:
    """[O, I] float32: what codes stand for."""
    return dequantize(codes_OI.view(torch.float8_e4m3fn), scales_O)


def linear_fp8(x_TI: Tensor, codes_OI: Tensor, scales_O: Tensor) -> Tensor:
    """[T, O] in x's dtype: the product of the rows' codes and the weights' codes, times both scales."""
    rounded_TI, scales_T = fp8_codes(x_TI)
    product_TO = rounded_TI.view(torch.float8_e4m3fn).to(torch.float32) @ codes_OI.view(torch.float8_e4m3fn).to(torch.float32).T
    return (product_TO * scales_T.unsqueeze(1) * scales_O).to(x_TI.dtype)
