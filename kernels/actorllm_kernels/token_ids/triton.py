"""Handing on sampled ids by Triton kernels: one launch each way. Legend: T tokens of a batch, S samples, R device rows."""

# pyright: reportMissingImports=false, reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.launch import Launch, dense_rows, require_dense

BLOCK = 256
"""No configuration: a step has less than a few of these, and its launch takes longer than they do."""


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["id_ptr", "row_ptr"])
def gather_ids_kernel(id_ptr, row_ptr, last_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """BLOCK tokens; the row of a token with an id of its own is not looked at."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(id_ptr + place, mask=place < count, other=0)
    is_unknown = (place < count) & (ids < 0)
    last = tl.load(last_ptr + tl.load(row_ptr + place, mask=is_unknown, other=0), mask=is_unknown, other=0)
    tl.store(out_ptr + place, tl.where(is_unknown, last, ids), mask=place < count)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["id_ptr", "row_ptr"])
def scatter_ids_kernel(id_ptr, row_ptr, last_ptr, count, BLOCK: tl.constexpr):
    """BLOCK samples."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(id_ptr + place, mask=place < count, other=0)
    rows = tl.load(row_ptr + place, mask=place < count, other=0)
    tl.store(last_ptr + rows, tl.maximum(ids, 0), mask=place < count)


def gather_ids(ids_T: Tensor, rows_T: Tensor, last_ids_R: Tensor) -> Tensor:
    """As the reference's."""
    out_T = torch.empty(len(ids_T), dtype=ids_T.dtype, device=ids_T.device)
    gather_launch(dense_rows(ids_T), dense_rows(rows_T), last_ids_R, out_T=out_T).run()
    return out_T


def scatter_ids(ids_S: Tensor, rows_S: Tensor, last_ids_R: Tensor) -> None:
    """As the reference's."""
    scatter_launch(dense_rows(ids_S), dense_rows(rows_S), last_ids_R).run()


def gather_launch(ids_T: Tensor, rows_T: Tensor, last_ids_R: Tensor, *, out_T: Tensor) -> Launch:
    """The kernel over all tokens, into `out_T`."""
    require_dense(ids_T=ids_T, rows_T=rows_T, last_ids_R=last_ids_R)
    arguments = {"id_ptr": ids_T, "row_ptr": rows_T, "last_ptr": last_ids_R, "out_ptr": out_T}
    return _over(gather_ids_kernel, len(ids_T), arguments)


def scatter_launch(ids_S: Tensor, rows_S: Tensor, last_ids_R: Tensor) -> Launch:
    """The kernel over all samples."""
    require_dense(ids_S=ids_S, rows_S=rows_S, last_ids_R=last_ids_R)
    arguments = {"id_ptr": ids_S, "row_ptr": rows_S, "last_ptr": last_ids_R}
    return _over(scatter_ids_kernel, len(ids_S), arguments)


def _over(kernel, count: int, arguments: dict[str, Tensor]) -> Launch:
    return Launch(kernel, (triton.cdiv(count, BLOCK),), {**arguments, "count": count}, {"BLOCK": BLOCK})
