"""Random numbers that belong to a (seed, output position) and to nothing else.

A counter-based generator: no state, so a row's numbers do not depend on its batch mates, on what ran before, on the rank
or on the device. The mixing function is the finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014), in int64 arithmetic that wraps modulo 2^64.

Legend: S samples.
"""

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def uniform(seeds_S: Tensor, positions_S: Tensor) -> Tensor:
    """[S] float64 in [0, 1): 53 bits of mix(mix(seed) + (position + 1) * gamma). Inputs are int64."""
    mixed = _mix(_mix(seeds_S) + (positions_S + 1) * _GAMMA)
    return _shift_right(mixed, 11).to(torch.float64) * 2.0**-53


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """A logical shift: torch's `>>` of int64 copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
