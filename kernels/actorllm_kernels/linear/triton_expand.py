"""Products of many rows with integer weights: a Triton kernel writes the weights in x's dtype, a block of outputs at a time, for
torch's product. Any groups of inputs, unlike the kernel for few rows.

Legend: M rows of x, N outputs, K inputs, S stretches of L codes within one group.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for
from actorllm_kernels.launch import ALIGNMENT, Launch
from actorllm_kernels.linear.reference import IntWeight

EXPANDED_BYTES = 2**26
"""Of values that exist at once: outputs enough to keep a GPU busy, in little memory."""


@triton.jit
def expand_kernel(
    code_ptr, scale_ptr, out_ptr, code_stride, scale_stride,
    COLUMNS: tl.constexpr, GROUP: tl.constexpr, IS_PACKED: tl.constexpr, STRETCHES: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """The values of STRETCHES * LENGTH columns of codes of one output; a column of 4-bit codes has the input of the first half of
    the row and that of the second. Grid: (outputs, blocks of columns)."""
    output = tl.program_id(0).to(tl.int64)
    first_S = (tl.program_id(1) * STRETCHES + tl.arange(0, STRETCHES)) * LENGTH
    column_SL = first_S[:, None] + tl.arange(0, LENGTH)[None, :]
    mask_S, mask_SL, scales = first_S < COLUMNS, column_SL < COLUMNS, scale_ptr + output * scale_stride
    codes_SL = tl.load(code_ptr + output * code_stride + column_SL, mask=mask_SL, other=0)
    scale_S = tl.load(scales + first_S // GROUP, mask=mask_S, other=0)
    if IS_PACKED:
        out_ptr += output * (2 * COLUMNS)
        high_S = tl.load(scales + (first_S + COLUMNS) // GROUP, mask=mask_S, other=0)
        tl.store(out_ptr + COLUMNS + column_SL, ((codes_SL >> 4).to(tl.float32) - 8) * high_S[:, None], mask=mask_SL)
        tl.store(out_ptr + column_SL, ((codes_SL & 0xF).to(tl.float32) - 8) * scale_S[:, None], mask=mask_SL)
    else:
        tl.store(out_ptr + output * COLUMNS + column_SL, codes_SL.to(tl.float32) * scale_S[:, None], mask=mask_SL)


def linear_expanded(x_MK: Tensor, weight: IntWeight) -> Tensor:
    """As the reference's `linear_weight_only`."""
    (num_rows, num_inputs), num_outputs = x_MK.shape, len(weight.codes_OI)
    num_blocks = max(1, triton.cdiv(num_outputs * num_inputs * x_MK.element_size(), EXPANDED_BYTES))
    # a block that began elsewhere would be compiled for again
    block = triton.cdiv(num_outputs, num_blocks * ALIGNMENT) * ALIGNMENT
    out_MN, values_NK = x_MK.new_empty(num_rows, num_outputs), x_MK.new_empty(block, num_inputs)
    for begin in range(0, num_outputs, block):
        some = weight.rows(slice(begin, begin + block))
        expanded_NK = values_NK[: len(some.codes_OI)]
        launch(some, expanded_NK).run()
        torch.mm(x_MK, expanded_NK.T, out=out_MN[:, begin : begin + block])
    return out_MN


def launch(weight: IntWeight, out_NK: Tensor, *, chosen: Configuration | None = None) -> Launch:
    """The kernel that writes a matrix's values into `out_NK`."""
    num_outputs, columns = weight.codes_OI.shape
    chosen = chosen or chosen_for("expand", {"bits": weight.num_bits, "bytes": out_NK.element_size()}, out_NK.device)
    block = min(chosen.block("n"), triton.next_power_of_2(columns))
    is_grouped, group_len = weight.group_len < weight.num_inputs, weight.group_len
    length = min(block, group_len & -group_len) if is_grouped else block  # a stretch lies within a group
    return Launch(
        expand_kernel,
        (num_outputs, triton.cdiv(columns, block)),
        {
            "code_ptr": weight.codes_OI, "scale_ptr": weight.scales_OG, "out_ptr": out_NK,
            "code_stride": weight.codes_OI.stride(0), "scale_stride": weight.scales_OG.stride(0),
        },
        {
            "COLUMNS": columns, "GROUP": group_len, "IS_PACKED": weight.is_packed, "STRETCHES": block // length, "LENGTH": length,
        },
        chosen,
    )  # fmt: skip
