"""Ids and slots by the C++ kernels: torch's operators for a few numbers cost more than the numbers.

All tensors are int64, tables int32.
"""

from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from actorllm_kernels.native import function, library

_GATHER = (c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64)
_SCATTER = (c_void_p, c_void_p, c_void_p, c_int64)
_ENTER = (c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int64)


def suits(ids_T: Tensor) -> bool:
    """Whether the kernels can be used here."""
    return ids_T.device.type == "cpu" and library() is not None


def gather_ids(ids_T: Tensor, rows_T: Tensor, last_ids_R: Tensor) -> Tensor:
    """As the reference's."""
    ids_T, out_T = ids_T.contiguous(), torch.empty(len(ids_T), dtype=torch.int64)
    function("actorllm_gather_ids", _GATHER)(
        ids_T.data_ptr(), rows_T.data_ptr(), rows_T.stride(0), last_ids_R.data_ptr(), out_T.data_ptr(), len(ids_T)
    )
    return out_T


def scatter_ids(ids_S: Tensor, rows_S: Tensor, last_ids_R: Tensor) -> None:
    """As the reference's."""
    ids_S, rows_S = ids_S.contiguous(), rows_S.contiguous()
    function("actorllm_scatter_ids", _SCATTER)(ids_S.data_ptr(), rows_S.data_ptr(), last_ids_R.data_ptr(), len(ids_S))


def enter_slots(table_RC: Tensor, rows_T: Tensor, columns_T: Tensor, slots_T: Tensor) -> None:
    """As the reference's."""
    rows_T, columns_T, slots_T = rows_T.contiguous(), columns_T.contiguous(), slots_T.contiguous()
    function("actorllm_enter_slots", _ENTER)(
        table_RC.data_ptr(), table_RC.stride(0), rows_T.data_ptr(), columns_T.data_ptr(), slots_T.data_ptr(), len(slots_T)
    )
