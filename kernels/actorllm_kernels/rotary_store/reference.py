"""What rotating and storing mean, in torch operators: the specification."""

from typing import NamedTuple

import torch
from torch import Tensor

from actorllm_kernels.quantize import quantize, set_rows


class Angles(NamedTuple):
    """Cosines and sines [T, 1, R] of a batch's positions; pairs are (r, r + R/2), or neighbours where interleaved.

    Both members of a pair have the angle's value.
    """

    cos_T1R: Tensor
    sin_T1R: Tensor
    is_interleaved: bool = False


def angles_of(positions_T: Tensor, frequencies_F: Tensor, *, factor: float = 1.0, is_interleaved: bool = False) -> Angles:
    """The angles of int64 positions, in float32: position times frequency.

    Cosines and sines are multiplied by `factor` (YaRN's, arXiv 2309.00071).
    """
    return angles_at(positions_T.to(torch.float32).unsqueeze(-1) * frequencies_F, factor=factor, is_interleaved=is_interleaved)


def angles_at(angles_TF: Tensor, *, factor: float, is_interleaved: bool) -> Angles:
    """The same for given angles."""
    angles_TR = angles_TF.repeat_interleave(2, dim=-1) if is_interleaved else torch.cat((angles_TF, angles_TF), dim=-1)
    cos_TR, sin_TR = angles_TR.cos(), angles_TR.sin()
    if factor != 1:
        cos_TR, sin_TR = cos_TR * factor, sin_TR * factor
    return Angles(cos_TR.unsqueeze(1), sin_TR.unsqueeze(1), is_interleaved)


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
    set_rows(values_T, slots_T, pool_N)
    scales_N[slots_T] = scales_T


def rotate_and_store(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKE: Tensor,
    angles: Angles | None,
    slots_T: Tensor,
    pools: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Store the rotated keys and the values in `pools` ([N, K, D], [N, K, E]); gives the rotated queries [T, H, D].

    Without angles nothing is rotated. Pools of int8 or float8_e4m3fn have `scales` [N, K] float32, see `quantize`; keys and
    queries are spread then (`spread`).
    """
    if angles is not None:
        q_THD, k_TKD = rotate(q_THD, angles), rotate(k_TKD, angles)
    if scales is not None:
        q_THD, k_TKD = spread(q_THD, angles).to(q_THD.dtype), spread(k_TKD, angles)
    k_scales, v_scales = scales or (None, None)
    store(k_TKD, slots_T, pools[0], k_scales)
    store(v_TKE, slots_T, pools[1], v_scales)
    return q_THD


def spread(x_THD: Tensor, angles: Angles | None) -> Tensor:
    """Each head turned by an orthogonal matrix of equal sizes, in float32 (QuaRot, arXiv 2404.00456).

    Keys have a few channels that are much larger than the others, and would take the digits of the scale they share. Turned, all
    channels are of a size; products of turned queries and keys are what they were. The sums and differences of rotated pairs are
    transformed each, the values that are not rotated apart from them; see `walsh`.
    """
    x = x_THD.to(torch.float32)
    size = 0 if angles is None else angles.cos_T1R.shape[-1]
    parts = [walsh(x[..., size:])]
    if angles is not None:
        whole = x[..., :size]
        pairs = whole.unflatten(-1, (-1, 2)) if angles.is_interleaved else whole.unflatten(-1, (2, -1)).transpose(-1, -2)
        first, second = pairs.unbind(-1)
        turned = torch.stack((walsh(first + second), walsh(first - second)), dim=-1 if angles.is_interleaved else -2) / 2**0.5
        parts.insert(0, turned.flatten(-2))
    return torch.cat(parts, dim=-1)


def walsh(x_D: Tensor) -> Tensor:
    """The Walsh-Hadamard transform, made orthogonal, of blocks of as many values as the largest power of two that divides D."""
    size = x_D.shape[-1]
    block = size & -size
    for half in (1 << bit for bit in range(block.bit_length() - 1)):
        first, second = x_D.unflatten(-1, (-1, 2, half)).unbind(-2)
        x_D = torch.stack((first + second, first - second), dim=-2).flatten(-3) / 2**0.5
    return x_D


def _turn_halves(x_THR: Tensor) -> Tensor:
    first, second = x_THR.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _turn_neighbours(x_THR: Tensor) -> Tensor:
    even, odd = x_THR.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-odd, even), dim=-1).flatten(-2)
