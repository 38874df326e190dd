"""How keys, values and weights of one byte are coded, as Triton functions; `quantize` specifies it.

float8_e4m3fn is coded by moving bits: float16 has the same layout with a wider exponent and mantissa, so 1/256 of a value in
float16 holds the byte's bits exactly, subnormal ones too. That needs no unit for fp8, so every GPU can.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
import torch
import triton
import triton.language as tl

PLAIN: tl.constexpr = tl.constexpr(0)
INT8: tl.constexpr = tl.constexpr(1)
FP8: tl.constexpr = tl.constexpr(2)
INT4: tl.constexpr = tl.constexpr(3)
"""Two codes in a byte: of weights alone."""
FORMS = {torch.int8: INT8, torch.float8_e4m3fn: FP8}
"""The dtypes of pools with factors; others are PLAIN."""
FP8_SHIFT: tl.constexpr = tl.constexpr(256.0)
"""What a decoded byte lacks: its factor has it instead."""
FP8_SMALLEST: tl.constexpr = tl.constexpr(2.0**-6)
"""The smallest power of two with three bits behind the point; smaller values have steps as large as its."""
ROUNDER: tl.constexpr = tl.constexpr(12582912.0)
"""1.5 * 2^23: a float32 sum with it has no bits behind the point, and is rounded to the nearest, half to even."""


@triton.jit
def decoded(x, FORM: tl.constexpr, DTYPE: tl.constexpr):
    """Stored values in the dtype of a product; those of FP8 1/256 of what they stand for."""
    if FORM == FP8:
        bits = x.to(tl.uint8, bitcast=True).to(tl.uint16)
        return (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True).to(DTYPE)
    return x.to(DTYPE)


@triton.jit
def largest(FORM: tl.constexpr):
    """What the largest size of a head's values is mapped to."""
    return 127.0 if FORM == INT8 else 448.0


@triton.jit
def quotient(x, y):
    """x / y to the nearest float32, as torch divides; `/` is off by a digit or two on GPUs, which would give other codes."""
    return tl.div_rn(x, tl.zeros_like(x) + y)


@triton.jit
def encoded(x, FORM: tl.constexpr, DTYPE: tl.constexpr):
    """float32 values over their factor, as they are stored in a pool of DTYPE (FP8: of bytes)."""
    if FORM == INT8:
        return ((x + ROUNDER) - ROUNDER).to(tl.int8)
    if FORM == FP8:
        power = (x.to(tl.uint32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        rounder = tl.maximum(power, FP8_SMALLEST) * (ROUNDER / 8)
        bits = (((x + rounder) - rounder) * (1 / FP8_SHIFT)).to(tl.float16).to(tl.uint16, bitcast=True)
        return (((bits & 0x8000) >> 8) | ((bits & 0x7FFF) >> 7)).to(tl.uint8)
    return x.to(DTYPE)
