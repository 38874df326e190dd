"""What handing on sampled ids and entering slots mean, in torch operators: the specification.

All tensors are int64, but tables int32.
"""

import torch
from torch import Tensor


def gather_ids(ids_T: Tensor, rows_T: Tensor, last_ids_R: Tensor) -> Tensor:
    """[T]: each token's id, or where that is negative the last one of its row."""
    return torch.where(ids_T < 0, last_ids_R[rows_T], ids_T)


def scatter_ids(ids_S: Tensor, rows_S: Tensor, last_ids_R: Tensor) -> None:
    """Keep the sampled ids as their rows' last ones; a failed sample (-1) as token 0, because its row is about to end.

    `rows_S` holds no row twice.
    """
    last_ids_R[rows_S] = ids_S.clamp(min=0)


def enter_slots(table_RC: Tensor, rows_T: Tensor, columns_T: Tensor, slots_T: Tensor) -> None:
    """Each token's slot is entered at its row and its place in the sequence."""
    table_RC[rows_T, columns_T] = slots_T.to(torch.int32)
