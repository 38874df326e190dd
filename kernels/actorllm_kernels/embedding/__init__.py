"""Rows of a table by their ids: token and position embeddings, of a whole table or of one rank's part of its rows.

`reference` specifies it; `cpu` is the C++ kernel, `triton` the one for GPUs.
Legend: T tokens, V rows of the table, D hidden size.
"""

from torch import Tensor

from actorllm_kernels.backends import takes_triton
from actorllm_kernels.embedding import cpu, reference

__all__ = ["embedding"]


def embedding(ids_T: Tensor, table_VD: Tensor, *, first_id: int | None = None) -> Tensor:
    """[T, D], see `reference.embedding`; the fastest way there is here."""
    if takes_triton("embedding", table_VD, "rows"):
        from actorllm_kernels.embedding import triton  # takes a second, and is not there without a GPU

        if triton.suits(ids_T, table_VD):
            return triton.embedding(ids_T, table_VD, first_id=first_id)
    if first_id is None and cpu.suits(ids_T, table_VD):
        return cpu.embedding(ids_T, table_VD)
    return reference.embedding(ids_T, table_VD, first_id=first_id)
