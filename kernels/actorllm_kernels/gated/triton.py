"""The gated product by the Triton kernel. Legend: T tokens, I inner size."""

# pyright: reportMissingImports=false, reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for
from actorllm_kernels.launch import INTERPRETED, LANGUAGE_TYPES, Launch, dense_rows, require_dense_rows

SQRT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
TANH_SCALE: tl.constexpr = tl.constexpr(0.7978845608028654)
TANH_CUBE: tl.constexpr = tl.constexpr(0.044715)


@triton.jit
def activated(x, NAME: tl.constexpr):
    """float32 in and out."""
    if NAME == "silu":
        y = x / (1 + tl.exp(-x))
    elif NAME == "gelu":
        y = x * 0.5 * (1 + tl.erf(x * SQRT_HALF))
    elif NAME == "gelu_tanh":  # x * (1 + tanh(u)) / 2, and (1 + tanh(u)) / 2 is the logistic function of 2u
        y = x / (1 + tl.exp((x + x * x * x * TANH_CUBE) * (-2 * TANH_SCALE)))
    else:
        tl.static_assert(NAME == "relu")
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return y


@triton.jit
def gated_kernel(gate_ptr, up_ptr, out_ptr, gate_stride, up_stride, size, NAME: tl.constexpr, BLOCK: tl.constexpr):
    """A part of one row."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=mask, other=0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=mask, other=0).to(tl.float32)
    tl.store(out_ptr + row * size + column, activated(gate, NAME) * up, mask=mask)


def suits(gate_TI: Tensor) -> bool:
    """Whether the kernel can compute this."""
    return (gate_TI.is_cuda or INTERPRETED) and gate_TI.dtype in LANGUAGE_TYPES and gate_TI.ndim == 2


def gated(gate_TI: Tensor, up_TI: Tensor, *, activation: str) -> Tensor:
    """As the reference's."""
    out_TI = torch.empty(up_TI.shape, dtype=up_TI.dtype, device=up_TI.device)
    launch(dense_rows(gate_TI), dense_rows(up_TI), activation=activation, out_TI=out_TI).run()
    return out_TI


def launch(
    gate_TI: Tensor, up_TI: Tensor, *, activation: str, out_TI: Tensor, chosen: Configuration | None = None
) -> Launch:
    """The kernel over all rows, into `out_TI`; values of a row lie side by side."""
    require_dense_rows(gate_TI=gate_TI, up_TI=up_TI)
    num_rows, size = up_TI.shape
    chosen = chosen or chosen_for("gated", {"bytes": up_TI.element_size()}, up_TI.device)
    return Launch(
        gated_kernel,
        (num_rows, triton.cdiv(size, chosen.block("n"))),
        {
            "gate_ptr": gate_TI,
            "up_ptr": up_TI,
            "out_ptr": out_TI,
            "gate_stride": gate_TI.stride(0),
            "up_stride": up_TI.stride(0),
            "size": size,
        },
        {"NAME": activation, "BLOCK": chosen.block("n")},
        chosen,
    )
