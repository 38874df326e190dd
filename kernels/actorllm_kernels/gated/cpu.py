"""The gated product by the C++ kernel, for float32: one pass, and the activation by vectors."""

from collections.abc import Mapping
from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from actorllm_kernels.native import function, library

CODES: Mapping[str, int] = {"silu": 0, "gelu_tanh": 1}
"""The activations that the kernel knows -> their numbers there."""

_ARGUMENTS = (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int64, c_int, c_void_p, c_int)


def suits(gate_TI: Tensor, up_TI: Tensor, activation: str) -> bool:
    """Whether the kernel can compute this, and exists."""
    if activation not in CODES or gate_TI.device.type != "cpu" or gate_TI.ndim != 2:
        return False
    return all(x.dtype == torch.float32 and x.stride(1) == 1 for x in (gate_TI, up_TI)) and library() is not None


def gated(gate_TI: Tensor, up_TI: Tensor, *, activation: str) -> Tensor:
    """As the reference's."""
    out_TI = torch.empty(gate_TI.shape)
    function("actorllm_gated", _ARGUMENTS)(
        gate_TI.data_ptr(), gate_TI.stride(0), up_TI.data_ptr(), up_TI.stride(0), *gate_TI.shape, CODES[activation],
        out_TI.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out_TI
