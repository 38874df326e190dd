"""Products of 8-bit floats by Triton kernels: rows of activations are rounded first, with a scale each, by a kernel of their own.

GPUs before compute capability 8.9 have no unit for such products: there the codes become float16 in registers, which is exact.
Legend: M rows of x, N outputs, K inputs.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for, gpu
from actorllm_kernels.launch import INTERPRETED, LANGUAGE_TYPES, Launch, dense_rows, require_dense, require_dense_rows
from actorllm_kernels.linear.triton import parts_that_fill, sum_of_parts, tile_rows
from actorllm_kernels.triton_forms import FP8, FP8_SHIFT, decoded, encoded, largest, quotient

FEW_ROWS = 64
"""Up to so many rows the inputs are cut into parts; with more there are programs enough."""
ROUND_BLOCK = 2048
"""No configuration: rows are small beside weights, and 16 values a thread are loads as wide as there are."""


@triton.jit
def round_rows_kernel(x_ptr, code_ptr, scale_ptr, x_stride, K: tl.constexpr, BLOCK: tl.constexpr):
    """The codes and the scale of one row, which is read twice: the second time from the cache. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    most_K, is_nan_K = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.int32)
    for first in range(0, K, BLOCK):
        k_K = first + tl.arange(0, BLOCK)
        x_K = tl.load(x_ptr + row * x_stride + k_K, mask=k_K < K, other=0).to(tl.float32)
        most_K, is_nan_K = tl.maximum(most_K, tl.abs(x_K)), is_nan_K | (x_K != x_K).to(tl.int32)
    scale = quotient(tl.max(most_K, 0), largest(FP8))
    scale = tl.where((tl.max(is_nan_K, 0) > 0) | (scale == float("inf")), float("nan"), scale)
    tl.store(scale_ptr + row, scale)
    divisor = tl.where(scale == 0, 1.0, scale)
    for first in range(0, K, BLOCK):
        k_K = first + tl.arange(0, BLOCK)
        x_K = tl.load(x_ptr + row * x_stride + k_K, mask=k_K < K, other=0).to(tl.float32)
        tl.store(code_ptr + row * K + k_K, encoded(quotient(x_K, divisor), FP8, tl.uint8), mask=k_K < K)


@triton.jit(do_not_specialize=["num_rows"])
def fp8_kernel(
    x_ptr, x_scale_ptr, code_ptr, scale_ptr, out_ptr, part_ptr, num_rows,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr,
    IS_NATIVE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A tile of outputs over one part of the inputs. Grid: (tiles of rows, tiles of outputs, parts)."""
    m_M, n_N = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_M, mask_N = m_M < num_rows, n_N < N
    part_size: tl.constexpr = ((K + PARTS - 1) // PARTS + BLOCK_K - 1) // BLOCK_K * BLOCK_K
    begin = tl.program_id(2) * part_size
    acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    zero: tl.constexpr = 0.0 if IS_NATIVE else 0  # of the floats, or of their bytes
    for first in range(begin, tl.minimum(begin + part_size, K), BLOCK_K):
        k_K = first + tl.arange(0, BLOCK_K)
        mask_K = (k_K < K)[None, :]
        x_MK = tl.load(x_ptr + m_M.to(tl.int64)[:, None] * K + k_K[None, :], mask=mask_M[:, None] & mask_K, other=zero)
        w_NK = tl.load(code_ptr + n_N.to(tl.int64)[:, None] * K + k_K[None, :], mask=mask_N[:, None] & mask_K, other=zero)
        if IS_NATIVE:  # these units add up in few bits: every 128 inputs the sum goes to a float32
            acc_MN = tl.dot(x_MK, tl.trans(w_NK), acc_MN, max_num_imprecise_acc=128)
        else:
            acc_MN += tl.dot(decoded(x_MK, FP8, DTYPE), tl.trans(decoded(w_NK, FP8, DTYPE)), input_precision="ieee")
    acc_MN *= tl.load(x_scale_ptr + m_M, mask=mask_M, other=0)[:, None] * tl.load(scale_ptr + n_N, mask=mask_N, other=0)[None, :]
    if not IS_NATIVE:
        acc_MN *= FP8_SHIFT * FP8_SHIFT
    mask_MN = mask_M[:, None] & mask_N[None, :]
    if PARTS == 1:
        tl.store(out_ptr + m_M.to(tl.int64)[:, None] * N + n_N[None, :], acc_MN, mask=mask_MN)
    else:
        tl.store(part_ptr + (tl.program_id(2) * num_rows + m_M[:, None]) * N + n_N[None, :], acc_MN, mask=mask_MN)


def suits(x_MK: Tensor) -> bool:
    """Whether the kernels can compute this."""
    is_here = x_MK.is_cuda or INTERPRETED
    return is_here and x_MK.dtype in LANGUAGE_TYPES and x_MK.ndim == 2 and min(x_MK.shape) > 0


def is_native(device: torch.device) -> bool:
    """Whether the GPU multiplies 8-bit floats: from compute capability 8.9 on."""
    return not INTERPRETED and int(gpu(device).removeprefix("sm_")) >= 89


def linear_fp8(x_MK: Tensor, codes_NK: Tensor, scales_N: Tensor) -> Tensor:
    """As the reference's."""
    out_MN = torch.empty(len(x_MK), len(codes_NK), dtype=x_MK.dtype, device=x_MK.device)
    for launch in launches(dense_rows(x_MK), codes_NK, scales_N, out_MN=out_MN):
        launch.run()
    return out_MN


def launches(
    x_MK: Tensor, codes_NK: Tensor, scales_N: Tensor, *, out_MN: Tensor, chosen: Configuration | None = None
) -> list[Launch]:
    """The kernels to run, in order, into `out_MN`."""
    require_dense(codes_NK=codes_NK, scales_N=scales_N)
    require_dense_rows(x_MK=x_MK)
    (num_rows, num_inputs), num_outputs, device = x_MK.shape, len(codes_NK), x_MK.device
    block_m = tile_rows(num_rows)
    chosen = chosen or chosen_for("linear_fp8", {"rows": block_m}, device)
    block_n, block_k = chosen.block("n"), chosen.block("k")
    grid = triton.cdiv(num_rows, block_m), triton.cdiv(num_outputs, block_n)
    num_parts = 1
    if num_rows <= FEW_ROWS:
        num_parts = parts_that_fill(device, grid[1], num_columns=num_inputs, block_k=block_k)
    part = torch.empty(num_parts, num_rows, num_outputs, dtype=torch.float32, device=device) if num_parts > 1 else None
    rounded_MK = torch.empty(num_rows, num_inputs, dtype=torch.uint8, device=device)
    x_scales_M = torch.empty(num_rows, dtype=torch.float32, device=device)
    dtype = torch.float8_e4m3fn if is_native(device) else torch.uint8
    found = [
        Launch(
            round_rows_kernel,
            (num_rows,),
            {"x_ptr": x_MK, "code_ptr": rounded_MK, "scale_ptr": x_scales_M, "x_stride": x_MK.stride(0)},
            {"K": num_inputs, "BLOCK": min(ROUND_BLOCK, triton.next_power_of_2(num_inputs))},
        ),
        Launch(
            fp8_kernel,
            (*grid, num_parts),
            {
                "x_ptr": rounded_MK.view(dtype), "x_scale_ptr": x_scales_M,
                "code_ptr": codes_NK.view(dtype), "scale_ptr": scales_N,
                "out_ptr": out_MN, "part_ptr": part, "num_rows": num_rows,
            },
            {
                "N": num_outputs, "K": num_inputs, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "PARTS": num_parts,
                "IS_NATIVE": is_native(device), "DTYPE": tl.float16,
            },
            chosen,
        ),
    ]  # fmt: skip
    if part is not None:
        found.append(sum_of_parts(part, out_MN))
    return found
