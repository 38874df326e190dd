"""Root mean square normalisation by the C++ kernel, for float32: one pass over x in the cache instead of one a term."""

from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from actorllm_kernels.native import function, library

_ARGUMENTS = (c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_float, c_int64, c_int64, c_void_p, c_void_p, c_int)


def suits(x_TD: Tensor, weight_D: Tensor) -> bool:
    """Whether the kernel can compute this, and exists."""
    is_float = x_TD.dtype == weight_D.dtype == torch.float32 and x_TD.device.type == "cpu"
    return is_float and x_TD.stride(-1) == 1 and weight_D.is_contiguous() and library() is not None


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """As the reference's."""
    size = x_TD.shape[-1]
    rows = x_TD if x_TD.ndim == 2 else x_TD.reshape(-1, size)
    out = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    function("actorllm_rms_norm", _ARGUMENTS)(
        rows.data_ptr(), rows.stride(0), None, 0, weight_D.data_ptr(), eps, rows.shape[0], size, None, out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def add_rms_norm(x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """As the reference's."""
    sum_TD, out_TD = torch.empty(x_TD.shape), torch.empty(x_TD.shape)
    function("actorllm_rms_norm", _ARGUMENTS)(
        x_TD.data_ptr(), x_TD.stride(0), y_TD.data_ptr(), y_TD.stride(0), weight_D.data_ptr(), eps, *x_TD.shape,
        sum_TD.data_ptr(), out_TD.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return sum_TD, out_TD
