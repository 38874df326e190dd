"""Embedding by the C++ kernel, for float32 tables: one copy a token, and no operator of torch's."""

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from actorllm_kernels.native import function, library

_ARGUMENTS = (c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int)


def suits(ids_T: Tensor, table_VD: Tensor) -> bool:
    """Whether the kernel can compute this, and exists."""
    is_table = table_VD.device.type == "cpu" and table_VD.dtype == torch.float32 and table_VD.stride(1) == 1
    return is_table and ids_T.dim() == 1 and ids_T.dtype == torch.int64 and library() is not None


def embedding(ids_T: Tensor, table_VD: Tensor) -> Tensor:
    """As the reference's; an id that the table does not hold gives NaN."""
    ids_T, (num_rows, size) = ids_T.contiguous(), table_VD.shape
    out_TD = torch.empty(len(ids_T), size)
    function("actorllm_rows_float32", _ARGUMENTS)(
        table_VD.data_ptr(), table_VD.stride(0), ids_T.data_ptr(), out_TD.data_ptr(), len(ids_T), size, num_rows,
        torch.get_num_threads(),
    )
    return out_TD
