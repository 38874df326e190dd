"""Attention by the C++ kernel: float32, bfloat16 and int8 pools, all forms of the reference, one call for all rows."""

from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from actorllm_kernels.attention.keys import RaggedKeys
from actorllm_kernels.native import function, library

POOL_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_ARGUMENTS = (
    (c_void_p, c_int64, c_int64, c_int)
    + (c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int)
    + (c_void_p, c_int64, c_int64, c_void_p, c_int64)
    + (c_void_p, c_int64, c_void_p, c_int)
    + (c_int,) * 4 + (c_float,) * 2
    + (c_void_p, c_void_p, c_int, c_void_p, c_int)
)  # fmt: skip


def suits(q_THD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> bool:
    """Whether the kernel can compute this, and exists."""
    if q_THD.device.type != "cpu" or k_NKD.dtype != v_NKD.dtype or k_NKD.dtype not in POOL_TYPES:
        return False
    return k_NKD.stride(2) == 1 and v_NKD.stride(2) == 1 and library() is not None


def attend(
    q_THD: Tensor,
    k_NKD: Tensor,
    v_NKE: Tensor,
    keys: RaggedKeys,
    *,
    scale: float,
    soft_cap: float | None = None,
    sinks_H: Tensor | None = None,
    slopes_H: Tensor | None = None,
    k_scales_NK: Tensor | None = None,
    v_scales_NK: Tensor | None = None,
) -> Tensor:
    """[T, H, E] in q's dtype; computed in float32. Raises `ValueError` for int8 pools that lack their factors."""
    if k_NKD.dtype == torch.int8 and (k_scales_NK is None or v_scales_NK is None):
        raise ValueError("int8 pools need a factor for each token and head")
    q = q_THD.to(torch.float32)
    if q.stride(2) != 1:
        q = q.contiguous()
    num_tokens, num_heads, head_dim = q.shape
    out_THE = torch.empty(num_tokens, num_heads, v_NKE.shape[2])
    sinks = None if sinks_H is None else sinks_H.to(torch.float32).contiguous()
    slopes = None if slopes_H is None else slopes_H.to(torch.float32).contiguous()
    k_factors, v_factors = ((None, 0) if x is None else (x.data_ptr(), x.stride(0)) for x in (k_scales_NK, v_scales_NK))
    function("actorllm_attend", _ARGUMENTS)(
        q.data_ptr(), q.stride(0), q.stride(1), POOL_TYPES[k_NKD.dtype],
        k_NKD.data_ptr(), k_NKD.stride(0), k_NKD.stride(1), *k_factors,
        2 if k_scales_NK is not None and k_scales_NK.dim() == 3 else 1,
        v_NKE.data_ptr(), v_NKE.stride(0), v_NKE.stride(1), *v_factors,
        keys.slot_table.data_ptr(), keys.slot_table.stride(0), keys.spans_B4.data_ptr(), len(keys.spans_B4),
        num_heads, k_NKD.shape[1], head_dim, v_NKE.shape[2], scale, soft_cap or 0.0,
        None if sinks is None else sinks.data_ptr(), None if slopes is None else slopes.data_ptr(),
        keys.window or 0, out_THE.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out_THE.to(q_THD.dtype)
