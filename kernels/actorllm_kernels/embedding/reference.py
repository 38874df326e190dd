"""What an embedding means, in torch operators: the specification."""

import torch
from torch import Tensor
from torch.nn import functional as F


def embedding(ids_T: Tensor, table_VD: Tensor, *, first_id: int | None = None) -> Tensor:
    """[T, D]: the table's row for each int64 id.

    With `first_id` the table is a part of a larger one that begins at this id: ids that it does not hold give zeros, so that the
    parts' results add up.
    """
    if first_id is None:
        return F.embedding(ids_T, table_VD)
    rows_T = ids_T - first_id
    is_here_T = (rows_T >= 0) & (rows_T < len(table_VD))
    return torch.where(is_here_T.unsqueeze(-1), F.embedding(torch.where(is_here_T, rows_T, 0), table_VD), 0)
