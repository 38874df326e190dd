"""Rotating and storing by the C++ kernel: float32 tokens into float32 or bfloat16 pools, in one call."""

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from actorllm_kernels.native import function, library
from actorllm_kernels.rotary_store.reference import Angles

_STRIDED = (c_void_p, c_int64, c_int64)
_ARGUMENTS = _STRIDED * 3 + (c_void_p, c_void_p, c_int, c_int, c_void_p) + _STRIDED * 2 + (c_int, c_void_p) + (c_int,) * 6


def suits(q_THD: Tensor, k_TKD: Tensor, v_TKE: Tensor, angles: Angles, pools: tuple[Tensor, Tensor]) -> bool:
    """Whether the kernel can compute this, and exists."""
    tokens = (q_THD, k_TKD, v_TKE, *angles[:2])
    if q_THD.device.type != "cpu" or any(x.dtype != torch.float32 for x in tokens):
        return False
    are_known = pools[0].dtype == pools[1].dtype and pools[0].dtype in (torch.float32, torch.bfloat16)
    return are_known and all(x.stride(2) == 1 for x in (*tokens[:3], *pools)) and library() is not None


def rotate_and_store(
    q_THD: Tensor, k_TKD: Tensor, v_TKE: Tensor, angles: Angles, slots_T: Tensor, pools: tuple[Tensor, Tensor]
) -> Tensor:
    """As the reference's."""
    num_tokens, num_heads, head_dim = q_THD.shape
    out_THD = torch.empty(q_THD.shape)
    cos_T1R, sin_T1R = angles.cos_T1R.contiguous(), angles.sin_T1R.contiguous()
    function("actorllm_rotate_and_store", _ARGUMENTS)(
        q_THD.data_ptr(), q_THD.stride(0), q_THD.stride(1),
        k_TKD.data_ptr(), k_TKD.stride(0), k_TKD.stride(1),
        v_TKE.data_ptr(), v_TKE.stride(0), v_TKE.stride(1),
        cos_T1R.data_ptr(), sin_T1R.data_ptr(), cos_T1R.shape[2], angles.is_interleaved, slots_T.data_ptr(),
        pools[0].data_ptr(), pools[0].stride(0), pools[0].stride(1),
        pools[1].data_ptr(), pools[1].stride(0), pools[1].stride(1), pools[0].dtype == torch.bfloat16,
        out_THD.data_ptr(), num_tokens, num_heads, k_TKD.shape[1], head_dim, v_TKE.shape[2], torch.get_num_threads(),
    )  # fmt: skip
    return out_THD
