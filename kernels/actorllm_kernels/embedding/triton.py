"""Embedding by the Triton kernel. Legend: T tokens, V rows of the table, D hidden size."""

# pyright: reportMissingImports=false, reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for
from actorllm_kernels.launch import INTERPRETED, LANGUAGE_TYPES, Launch, dense_rows, require_dense_rows


@triton.jit(do_not_specialize=["first_id", "num_rows"], do_not_specialize_on_alignment=["id_ptr"])
def embedding_kernel(id_ptr, table_ptr, out_ptr, table_stride, first_id, num_rows, size, BLOCK: tl.constexpr):
    """A part of one token's row; zeros for an id that the table does not hold, which is never read."""
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(id_ptr + token).to(tl.int64) - first_id
    num_known = tl.where((row >= 0) & (row < num_rows), size, 0)
    values = tl.load(table_ptr + row * table_stride + column, mask=column < num_known, other=0)
    tl.store(out_ptr + token * size + column, values, mask=column < size)


def suits(ids_T: Tensor, table_VD: Tensor) -> bool:
    """Whether the kernel can compute this."""
    return (table_VD.is_cuda or INTERPRETED) and table_VD.dtype in LANGUAGE_TYPES and table_VD.stride(1) == 1 and ids_T.ndim == 1


def embedding(ids_T: Tensor, table_VD: Tensor, *, first_id: int | None = None) -> Tensor:
    """As the reference's; ids that a whole table does not hold give zeros, too."""
    out_TD = torch.empty(len(ids_T), table_VD.shape[1], dtype=table_VD.dtype, device=table_VD.device)
    launch(dense_rows(ids_T), table_VD, first_id=first_id or 0, out_TD=out_TD).run()
    return out_TD


def launch(
    ids_T: Tensor, table_VD: Tensor, *, first_id: int, out_TD: Tensor, chosen: Configuration | None = None
) -> Launch:
    """The kernel over all tokens, into `out_TD`."""
    require_dense_rows(ids_T=ids_T, table_VD=table_VD)
    num_tokens, size = out_TD.shape
    chosen = chosen or chosen_for("embedding", {"bytes": table_VD.element_size()}, table_VD.device)
    return Launch(
        embedding_kernel,
        (num_tokens, triton.cdiv(size, chosen.block("n"))),
        {
            "id_ptr": ids_T,
            "table_ptr": table_VD,
            "out_ptr": out_TD,
            "table_stride": table_VD.stride(0),
            "first_id": first_id,
            "num_rows": len(table_VD),
            "size": size,
        },
        {"BLOCK": chosen.block("n")},
        chosen,
    )
