"""What rotating and storing mean, in torch operators: the specification."""

from typing import NamedTuple

import torch
from torch import Tensor

from actorllm_kernels.quantize import quantize


class Angles(NamedTuple):
    """Cosines and sines [T, 1, R] of a batch's positions; pairs are (r, r + R/2), or neighbours where interleaved.

    Both members of a pair have the angle's value.
    """

    cos_T1R: Tensor
    sin_T1R: Tensor
    is_interleaved: bool = False


def rotate(x_THD: Tensor, angles: Angles) -> Tensor:
    """The first R values of each head, rotated in pairs; the others as they are."""
    turn = _turn_neighbours if angles.is_interleaved else _turn_halves
    size = angles.cos_T1R.shape[-1]
    if size == x_THD.shape[-1]:
        return x_THD * angles.cos_T1R + turn(x_THD) * angles.sin_T1R
    x_THR, rest = x_THD[..., :size], x_THD[..., size:]
    return torch.cat((x_THR * angles.cos_T1R + turn(x_THR) * angles.sin_T1R, rest), dim=-1)


def store(values_T: Tensor, slots_T: Tensor, pool_N: Tensor, scales_N: Tensor | None = None) -> None:
    """`pool_N[slots_T[t]] = values_T[t]`: `values_T` is [T, *shape], `pool_N` [N, *shape], `slots_T` int64 [T].

    Pools of int8 or float8_e4m3fn have `scales_N` [N, *shape[:-1]] float32, see `quantize`.
    """
    if scales_N is None:
        pool_N.index_copy_(0, slots_T, values_T.to(pool_N.dtype))
        return
    values_T, scales_T = quantize(values_T, pool_N.dtype)
    pool_N[slots_T] = values_T
    scales_N[slots_T] = scales_T


def rotate_and_store(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKE: Tensor,
    angles: Angles,
    slots_T: Tensor,
    pools: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Store the rotated keys and the values in `pools` ([N, K, D], [N, K, E]); gives the rotated queries [T, H, D].

    Pools of int8 or float8_e4m3fn have `scales` [N, K] float32, see `quantize`.
    """
    k_scales, v_scales = scales or (None, None)
    store(rotate(k_TKD, angles), slots_T, pools[0], k_scales)
    store(v_TKE, slots_T, pools[1], v_scales)
    return rotate(q_THD, angles)


def _turn_halves(x_THR: Tensor) -> Tensor:
    first, second = x_THR.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _turn_neighbours(x_THR: Tensor) -> Tensor:
    even, odd = x_THR.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-odd, even), dim=-1).flatten(-2)
