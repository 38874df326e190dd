"""Rotating and storing by the C++ kernel: float32 tokens into float32, bfloat16 or int8 pools, in one call."""

from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from actorllm_kernels.native import function, library
from actorllm_kernels.rotary_store.reference import Angles

POOL_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_STRIDED = (c_void_p, c_int64, c_int64)
_FACTORS = (c_void_p, c_int64)
_ARGUMENTS = (
    _STRIDED * 3
    + (c_void_p, c_void_p, c_int, c_int, c_void_p)
    + (_STRIDED + _FACTORS) * 2
    + (c_int, c_int, c_void_p)
    + (c_int,) * 6
)
_ANGLES = (c_void_p, c_int64, c_void_p, c_int, c_float, c_int, c_void_p, c_void_p, c_int64, c_int)


def suits(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKE: Tensor,
    angles: Angles | None,
    pools: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor] | None = None,
) -> bool:
    """Whether the kernel can compute this, and exists."""
    if angles is None and scales is None:
        return False  # nothing to compute
    tokens = (q_THD, k_TKD, v_TKE, *(angles[:2] if angles else ()))
    if q_THD.device.type != "cpu" or any(x.dtype != torch.float32 for x in tokens):
        return False
    dtype = pools[0].dtype
    are_known = pools[1].dtype == dtype and dtype in POOL_TYPES and (dtype == torch.int8) == bool(scales)
    return are_known and all(x.stride(2) == 1 for x in (*tokens[:3], *pools)) and library() is not None


def suits_quantized(values_TKD: Tensor, pool_NKD: Tensor) -> bool:
    """Whether `store_quantized` can store this, and exists."""
    is_known = values_TKD.device.type == "cpu" and (values_TKD.dtype, pool_NKD.dtype) == (torch.float32, torch.int8)
    return is_known and values_TKD.dim() == 3 and values_TKD.stride(2) == pool_NKD.stride(2) == 1 and library() is not None


def rotate_and_store(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKE: Tensor,
    angles: Angles | None,
    slots_T: Tensor,
    pools: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """As the reference's."""
    num_tokens, num_heads, head_dim = q_THD.shape
    out_THD = torch.empty(q_THD.shape)
    tables = (None, None, 0, False)
    if angles is not None:
        cos_T1R, sin_T1R = angles.cos_T1R.contiguous(), angles.sin_T1R.contiguous()
        tables = cos_T1R.data_ptr(), sin_T1R.data_ptr(), cos_T1R.shape[2], angles.is_interleaved
    k_scales, v_scales = scales or (None, None)
    function("actorllm_rotate_and_store", _ARGUMENTS)(
        *_strided(q_THD), *_strided(k_TKD), *_strided(v_TKE), *tables, slots_T.data_ptr(),
        *_strided(pools[0]), *_factors(k_scales), *_strided(pools[1]), *_factors(v_scales),
        POOL_TYPES[pools[0].dtype], scales is not None,
        out_THD.data_ptr(), num_tokens, num_heads, k_TKD.shape[1], head_dim, v_TKE.shape[2], torch.get_num_threads(),
    )  # fmt: skip
    return out_THD


def suits_positions(positions_T: Tensor, frequencies_F: Tensor) -> bool:
    """Whether `angles_of` can compute this, and exists."""
    is_known = positions_T.dtype == torch.int64 and frequencies_F.dtype == torch.float32 and positions_T.device.type == "cpu"
    return is_known and positions_T.dim() == frequencies_F.dim() == 1 and library() is not None


def angles_of(positions_T: Tensor, frequencies_F: Tensor, *, factor: float = 1.0, is_interleaved: bool = False) -> Angles:
    """As the reference's, within two units in the last place of 1."""
    num_tokens, num_frequencies, frequencies_F = len(positions_T), len(frequencies_F), frequencies_F.contiguous()
    cos_T1R, sin_T1R = (torch.empty(num_tokens, 1, 2 * num_frequencies) for _ in range(2))
    function("actorllm_angles", _ANGLES)(
        positions_T.data_ptr(), positions_T.stride(0), frequencies_F.data_ptr(), num_frequencies, factor, is_interleaved,
        cos_T1R.data_ptr(), sin_T1R.data_ptr(), num_tokens, torch.get_num_threads(),
    )  # fmt: skip
    return Angles(cos_T1R, sin_T1R, is_interleaved)


def store_quantized(values_TKD: Tensor, slots_T: Tensor, pool_NKD: Tensor, scales_NK: Tensor) -> None:
    """As the reference's `store`, into an int8 pool."""
    nothing, no_factors = (None, 0, 0), (None, 0)
    num_tokens, num_heads, head_dim = values_TKD.shape
    function("actorllm_rotate_and_store", _ARGUMENTS)(
        *nothing, *_strided(values_TKD), *nothing, None, None, 0, False, slots_T.data_ptr(),
        *_strided(pool_NKD), *_factors(scales_NK), *nothing, *no_factors, POOL_TYPES[pool_NKD.dtype], False,
        None, num_tokens, 0, num_heads, head_dim, 0, torch.get_num_threads(),
    )  # fmt: skip


def _strided(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)


def _factors(scales_NK: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if scales_NK is None else (scales_NK.data_ptr(), scales_NK.stride(0))
