"""The greedy draw by the C++ kernel: one pass over the logits, and no operator of torch's."""

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from actorllm_kernels.native import function, library

_ARGUMENTS = (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int)


def suits(logits_SV: Tensor) -> bool:
    """Whether the kernel can compute this, and exists."""
    is_rows = logits_SV.device.type == "cpu" and logits_SV.dtype == torch.float32 and logits_SV.stride(1) == 1
    return is_rows and library() is not None


def best(logits_SV: Tensor) -> Tensor:
    """[S] int64, as the reference's `draw` of rows that are all greedy."""
    num_samples, vocab_size = logits_SV.shape
    ids_S = torch.empty(num_samples, dtype=torch.int64)
    function("actorllm_best", _ARGUMENTS)(
        logits_SV.data_ptr(), logits_SV.stride(0), ids_S.data_ptr(), num_samples, vocab_size, torch.get_num_threads()
    )
    return ids_S
