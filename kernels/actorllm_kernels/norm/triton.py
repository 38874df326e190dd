"""Norms by the Triton kernel, with a sum before or without: each row is read once and written once.

Legend: T rows, D the normalised size.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for
from actorllm_kernels.launch import INTERPRETED, LANGUAGE_TYPES, Launch, dense_rows, require_dense, require_dense_rows


@triton.jit(do_not_specialize=["eps"])
def norm_kernel(
    x_ptr, y_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr, x_stride, y_stride, eps,
    IS_RMS: tl.constexpr, HAS_SUM: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row. The sum is rounded to x's dtype before it is normed, as if it had been written and read."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    mask = column < D
    x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0).to(tl.float32)
    if HAS_SUM:
        x += tl.load(y_ptr + row * y_stride + column, mask=mask, other=0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * D + column, rounded, mask=mask)
        x = rounded.to(tl.float32)
    if IS_RMS:
        y = x * tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
        if HAS_WEIGHT:  # the product is made in the weight's dtype
            y = y.to(weight_ptr.dtype.element_ty).to(tl.float32)
    else:
        centred = tl.where(mask, x - tl.sum(x, axis=0) / D, 0.0)
        y = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / D + eps)
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + column, mask=mask, other=0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + column, mask=mask, other=0).to(tl.float32)
    tl.store(out_ptr + row * D + column, y, mask=mask)


def suits(x_TD: Tensor) -> bool:
    """Whether the kernel can compute this."""
    return (x_TD.is_cuda or INTERPRETED) and x_TD.dtype in LANGUAGE_TYPES


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """As the reference's."""
    return _alone(x_TD, weight_D=weight_D, bias_D=None, eps=eps, is_rms=True)


def layer_norm(x_TD: Tensor, *, weight_D: Tensor | None, bias_D: Tensor | None, eps: float) -> Tensor:
    """As the reference's."""
    return _alone(x_TD, weight_D=weight_D, bias_D=bias_D, eps=eps, is_rms=False)


def add_rms_norm(x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """As the reference's."""
    return _of_sum(x_TD, y_TD, weight_D=weight_D, bias_D=None, eps=eps, is_rms=True)


def add_layer_norm(
    x_TD: Tensor, y_TD: Tensor, *, weight_D: Tensor | None, bias_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """As the reference's."""
    return _of_sum(x_TD, y_TD, weight_D=weight_D, bias_D=bias_D, eps=eps, is_rms=False)


def _alone(x_TD: Tensor, *, weight_D: Tensor | None, bias_D: Tensor | None, eps: float, is_rms: bool) -> Tensor:
    x = dense_rows(x_TD.reshape(-1, x_TD.shape[-1]))
    out_TD = _empty(x)
    launch(x, None, weight_D=weight_D, bias_D=bias_D, eps=eps, is_rms=is_rms, results=(None, out_TD)).run()
    return out_TD.view(x_TD.shape)


def _of_sum(
    x_TD: Tensor, y_TD: Tensor, *, weight_D: Tensor | None, bias_D: Tensor | None, eps: float, is_rms: bool
) -> tuple[Tensor, Tensor]:
    x, y = (dense_rows(each.reshape(-1, each.shape[-1])) for each in (x_TD, y_TD))
    sum_TD, out_TD = _empty(x), _empty(x)
    launch(x, y, weight_D=weight_D, bias_D=bias_D, eps=eps, is_rms=is_rms, results=(sum_TD, out_TD)).run()
    return sum_TD.view(x_TD.shape), out_TD.view(x_TD.shape)


def _empty(x_TD: Tensor) -> Tensor:
    return torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)


def launch(
    x_TD: Tensor,
    y_TD: Tensor | None,
    *,
    weight_D: Tensor | None,
    bias_D: Tensor | None,
    eps: float,
    is_rms: bool,
    results: tuple[Tensor | None, Tensor],
    chosen: Configuration | None = None,
) -> Launch:
    """The kernel over all rows of `x + y`, or of x, into `results`: the sum if there is one, and it normalised."""
    require_dense(weight_D=weight_D, bias_D=bias_D)
    require_dense_rows(x_TD=x_TD, y_TD=y_TD)
    num_rows, size = x_TD.shape
    block = triton.next_power_of_2(size)
    chosen = chosen or chosen_for("norm", {"size": block}, x_TD.device)
    return Launch(
        norm_kernel,
        (num_rows,),
        {
            "x_ptr": x_TD, "y_ptr": y_TD, "weight_ptr": weight_D, "bias_ptr": bias_D,
            "sum_ptr": results[0], "out_ptr": results[1],
            "x_stride": x_TD.stride(0), "y_stride": 0 if y_TD is None else y_TD.stride(0), "eps": float(eps),
        },
        {
            "IS_RMS": is_rms, "HAS_SUM": y_TD is not None, "HAS_WEIGHT": weight_D is not None, "HAS_BIAS": bias_D is not None,
            "D": size, "BLOCK": block,
        },
        chosen,
    )  # fmt: skip
