"""Whether a kernel gave what its reference gives: how far floating-point results may lie apart, as a whole and value by value.

A whole is off by the norm of its difference over its own: that finds a factor that is wrong everywhere. A value is off by its
difference over the sum of its own size and that of its row (the root of the mean square along the last axis): that finds the one
value of many that was not written, which no norm shows. Knows no kernel.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """How far the whole and any single value may be off."""

    whole: float
    value: float


ROUNDED: Mapping[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(1e-3, 1e-2),
    torch.float16: Tolerance(4e-3, 2e-2),
    torch.bfloat16: Tolerance(0.0125, 0.05),
    torch.int8: Tolerance(0.0125, 0.06),
    torch.float8_e4m3fn: Tolerance(0.03, 0.15),
    torch.int64: Tolerance(0.0, 0.0),
}
"""Of results whose numbers are rounded to a dtype on their way. A check that fails falsely costs the kernel, so all are a few times
what right kernels show under Triton's interpreter: 7e-7 and 4e-6 in float32, 8e-4 and 2.5e-3 in float16, 0.011 and 0.023 in bfloat16,
which the interpreter cuts off where GPUs round, and half of that is left. float32 leaves room for references whose products torch was
told to make of TF32 (4e-4 and 2e-3). Of codes (0.006 and 0.026 with int8, 0.013 and 0.08 with 8-bit floats) some are neighbours of the
right one, where a value before rounding lies in the middle between two: a step is a 127th of a row's largest value, or an eighth of
the value."""


def tolerance(*rounded_to: torch.dtype) -> Tolerance:
    """Of results whose numbers are rounded to these dtypes on their way."""
    each = [ROUNDED[dtype] for dtype in rounded_to]
    return Tolerance(max(one.whole for one in each), max(one.value for one in each))


def compare(got: Tensor, expected: Tensor, allowed: Tolerance, *, largest_share: float = 0.0) -> tuple[float, str]:
    """How far the whole is off, and what is wrong, if anything is.

    Of integers, where a near one is as wrong as any, that is the share that differs, of which there may be `largest_share`.
    """
    if got.shape != expected.shape:
        return 1.0, f"shape {[*got.shape]} instead of {[*expected.shape]}"
    if not expected.is_floating_point():
        num_wrong = int((got != expected).sum())
        share = num_wrong / max(expected.numel(), 1)
        return share, f"{num_wrong} of {expected.numel()} differ" if share > largest_share else ""
    if not torch.isfinite(got).all():
        return 1.0, "something was not written, or is not finite"
    got, expected = (each.reshape(-1, each.shape[-1]).float() for each in (got, expected))
    differences, sizes_R1 = (got - expected).abs(), expected.square().mean(dim=1, keepdim=True).sqrt()
    least = torch.finfo(torch.float32).tiny  # where zeros are expected anything else is off beyond measure
    whole = (differences.norm() / expected.norm().clamp(min=least)).item()
    if not whole <= allowed.whole:
        return whole, f"relative error {whole:.3g}"
    worst = (differences / (expected.abs() + sizes_R1).clamp(min=least)).max().item()
    return whole, "" if worst <= allowed.value else f"a value is off by {worst:.3g} of its size and its row's"
