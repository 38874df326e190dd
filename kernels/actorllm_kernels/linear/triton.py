"""Products with integer weights by Triton kernels: of some rows in one, while reading the weights is most of the work.

Activations stay in 16 bits (or 32): the codes become floating point in registers. Of more rows torch's product should be
faster, even when a kernel has to write the weights in x's dtype first (`triton_expand`): estimated, and measured on no GPU yet.

The inputs are cut into parts so that there are programs enough; the parts' sums are added in a fixed order, so a result never
depends on timing. Legend: M rows of x, N outputs, K inputs, G inputs with one factor.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for, num_programs_that_fill
from actorllm_kernels.launch import INTERPRETED, LANGUAGE_TYPES, LEAST_SIDE, Launch, dense_rows, product_type, require_dense_rows
from actorllm_kernels.linear.reference import IntWeight
from actorllm_kernels.linear.triton_expand import linear_expanded

MOST_ROWS = 256
"""Estimated: more rows should be worth expanding the weights. That moves 4 bytes more a weight, as long as torch's product of some
400 rows should take, and the kernel's will hardly be as fast as torch's."""
MOST_ROWS_IN_FLOAT32 = 64
"""Matrix units have no such products."""
MOST_TILE_ROWS = 128
"""As many as there are registers for their sums."""
MOST_PARTS = 16
TILES_PER_PART = 4
"""A part of fewer tiles of columns would cost more to add than it saves."""
SUM_BLOCK = 1024
"""No configuration: the sum of parts reads little beside the weights."""


@triton.jit
def codes_product(
    x_MK, codes_NK, acc_MN, scale_ptr, n_N, mask_N, scale_stride, group, IS_GROUPED: tl.constexpr, DTYPE: tl.constexpr
):
    """The sum so far plus the products with one tile of codes, times their groups' factors if there are several."""
    product_MN = tl.dot(x_MK.to(DTYPE), tl.trans(codes_NK.to(DTYPE)), input_precision="ieee")
    if IS_GROUPED:
        product_MN *= tl.load(scale_ptr + n_N * scale_stride + group, mask=mask_N, other=0)[None, :]
    return acc_MN + product_MN


@triton.jit(do_not_specialize=["num_rows"])
def weight_only_kernel(
    x_ptr, code_ptr, scale_ptr, out_ptr, part_ptr, x_stride, code_stride, scale_stride, num_rows,
    N: tl.constexpr, K: tl.constexpr, G: tl.constexpr, IS_PACKED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A tile of outputs over one part of the inputs. Grid: (tiles of rows, tiles of outputs, parts); those that read the same
    codes come one after the other, so that the cache has them."""
    m_M, n_N = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k_K = tl.arange(0, BLOCK_K)
    mask_M, mask_N = m_M < num_rows, n_N < N
    columns: tl.constexpr = K // 2 if IS_PACKED else K
    part_size: tl.constexpr = ((columns + PARTS - 1) // PARTS + BLOCK_K - 1) // BLOCK_K * BLOCK_K
    begin = tl.program_id(2) * part_size
    acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(begin, tl.minimum(begin + part_size, columns), BLOCK_K):
        column_K = first + k_K
        mask_K = column_K < columns
        codes = tl.load(
            code_ptr + n_N.to(tl.int64)[:, None] * code_stride + column_K[None, :],
            mask=mask_N[:, None] & mask_K[None, :],
            other=0,
        )
        mask_MK = mask_M[:, None] & mask_K[None, :]
        x_MK = tl.load(x_ptr + m_M[:, None] * x_stride + column_K[None, :], mask=mask_MK, other=0)
        if IS_PACKED:
            high_MK = tl.load(x_ptr + m_M[:, None] * x_stride + (column_K + K // 2)[None, :], mask=mask_MK, other=0)
            low, high = (codes & 0xF).to(tl.int8) - 8, (codes >> 4).to(tl.int8) - 8
            acc_MN = codes_product(x_MK, low, acc_MN, scale_ptr, n_N, mask_N, scale_stride, first // G, G < K, DTYPE)
            acc_MN = codes_product(
                high_MK, high, acc_MN, scale_ptr, n_N, mask_N, scale_stride, (first + K // 2) // G, G < K, DTYPE
            )
        else:
            acc_MN = codes_product(x_MK, codes, acc_MN, scale_ptr, n_N, mask_N, scale_stride, first // G, G < K, DTYPE)
    if G == K:
        acc_MN *= tl.load(scale_ptr + n_N * scale_stride, mask=mask_N, other=0)[None, :]
    mask = mask_M[:, None] & mask_N[None, :]
    if PARTS == 1:
        tl.store(out_ptr + m_M[:, None] * N + n_N[None, :], acc_MN, mask=mask)
    else:
        tl.store(part_ptr + (tl.program_id(2) * num_rows + m_M[:, None]) * N + n_N[None, :], acc_MN, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def add_parts_kernel(part_ptr, out_ptr, num_rows, N: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of the parts of one row's outputs, in their order. Grid: (rows, blocks of outputs)."""
    n_N = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = n_N < N
    acc_N = tl.zeros([BLOCK], tl.float32)
    for part in range(0, PARTS):
        acc_N += tl.load(part_ptr + (part * num_rows + tl.program_id(0)) * N + n_N, mask=mask, other=0)
    tl.store(out_ptr + tl.program_id(0) * N + n_N, acc_N, mask=mask)


def suits(x_MK: Tensor, weight: IntWeight) -> bool:
    """Whether the kernels can compute this."""
    is_here = (x_MK.is_cuda or INTERPRETED) and x_MK.dtype in LANGUAGE_TYPES and x_MK.ndim == 2 and min(x_MK.shape) > 0
    is_read = weight.codes_OI.stride(1) == 1 and weight.scales_OG.stride(1) == 1
    return is_here and is_read and x_MK.shape[1] == weight.num_inputs


def fits_one_kernel(x_MK: Tensor, weight: IntWeight) -> bool:
    """Whether the product need not write the weights' values first."""
    most_rows = MOST_ROWS_IN_FLOAT32 if x_MK.dtype == torch.float32 else MOST_ROWS
    return len(x_MK) <= most_rows and tiles_fit(weight.codes_OI.shape[1], weight.group_len, weight.num_inputs)


def tile_rows(num_rows: int) -> int:
    """The rows of a tile."""
    return min(max(triton.next_power_of_2(num_rows), LEAST_SIDE), MOST_TILE_ROWS)


def tiles_fit(num_columns: int, group_len: int, num_inputs: int) -> bool:
    """Whether tiles of codes can lie within groups of inputs; 4-bit codes have half as many columns as inputs."""
    return group_len == num_inputs or (num_columns % group_len == 0 and group_len % LEAST_SIDE == 0)


def tile_columns(block: int, group_len: int, num_inputs: int) -> int:
    """The columns of a tile: `block`, or the largest power of two that divides a group where there are several."""
    return block if group_len == num_inputs else min(block, group_len & -group_len)


def linear_weight_only(x_MK: Tensor, weight: IntWeight) -> Tensor:
    """As the reference's, but while there are few rows the weights are not rounded to x's dtype."""
    if not fits_one_kernel(x_MK, weight):
        return linear_expanded(x_MK, weight)
    out_MN = torch.empty(len(x_MK), len(weight.codes_OI), dtype=x_MK.dtype, device=x_MK.device)
    for launch in launches(dense_rows(x_MK), weight, out_MN=out_MN):
        launch.run()
    return out_MN


def launches(x_MK: Tensor, weight: IntWeight, *, out_MN: Tensor, chosen: Configuration | None = None) -> list[Launch]:
    """The kernels to run, in order, into `out_MN`, of a product that `fits_one_kernel`."""
    require_dense_rows(x_MK=x_MK)
    (num_rows, num_inputs), num_outputs = x_MK.shape, len(weight.codes_OI)
    block_m = tile_rows(num_rows)
    shape = {"bits": weight.num_bits, "bytes": x_MK.element_size(), "rows": block_m}
    chosen = chosen or chosen_for("linear_weight_only", shape, x_MK.device)
    block_n, block_k = chosen.block("n"), tile_columns(chosen.block("k"), weight.group_len, num_inputs)
    grid = triton.cdiv(num_rows, block_m), triton.cdiv(num_outputs, block_n)
    num_parts = parts_that_fill(x_MK.device, math.prod(grid), num_columns=weight.codes_OI.shape[1], block_k=block_k)
    part = torch.empty(num_parts, num_rows, num_outputs, dtype=torch.float32, device=x_MK.device) if num_parts > 1 else None
    found = [
        Launch(
            weight_only_kernel,
            (*grid, num_parts),
            {
                "x_ptr": x_MK, "code_ptr": weight.codes_OI, "scale_ptr": weight.scales_OG, "out_ptr": out_MN,
                "part_ptr": part, "x_stride": x_MK.stride(0), "code_stride": weight.codes_OI.stride(0),
                "scale_stride": weight.scales_OG.stride(0), "num_rows": num_rows,
            },
            {
                "N": num_outputs, "K": num_inputs, "G": weight.group_len, "IS_PACKED": weight.is_packed,
                "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "PARTS": num_parts,
                "DTYPE": product_type(x_MK.dtype),
            },
            chosen,
        )
    ]  # fmt: skip
    if part is not None:
        found.append(sum_of_parts(part, out_MN))
    return found


def parts_that_fill(device: torch.device, num_programs: int, *, num_columns: int, block_k: int) -> int:
    """Into how many parts, a power of two, the columns are cut so that `num_programs` tiles of outputs fill the GPU.

    Rather too few than too many: all parts have as much to do, and the sum waits for one that had to wait for a processor.
    """
    free = num_programs_that_fill(device) // num_programs
    num_parts = max(1, min(free, MOST_PARTS, triton.cdiv(num_columns, block_k * TILES_PER_PART)))
    return 1 << (num_parts.bit_length() - 1)


def sum_of_parts(part: Tensor, out_MN: Tensor) -> Launch:
    """The sum over the first axis of `part` [parts, M, N] into `out_MN`."""
    num_parts, num_rows, num_outputs = part.shape
    arguments = {"part_ptr": part, "out_ptr": out_MN, "num_rows": num_rows}
    constants = {"N": num_outputs, "PARTS": num_parts, "BLOCK": SUM_BLOCK}
    return Launch(add_parts_kernel, (num_rows, triton.cdiv(num_outputs, SUM_BLOCK)), arguments, constants)
