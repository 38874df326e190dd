"""A mixture's experts by Triton kernels: assignments sorted by expert, then one grouped product for gates and ups, one for outputs.

An expert's rows are cut into blocks, so that a block has one expert. How many blocks there are is known on the device alone; the
grid has as many as there can be with so many tokens, and a program without a block ends at once. So nothing waits for the
device, and shapes depend on the number of tokens only. A token's results are summed in the order of its experts.

Legend: T tokens, D hidden size, E experts, K experts of one token, I an expert's inner size, J = 2 I; of a tile M rows, N outputs and
C inputs.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for
from actorllm_kernels.experts.reference import ExpertStack
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.gated.triton import activated
from actorllm_kernels.launch import INTERPRETED, LANGUAGE_TYPES, Launch

LEAST_ROWS, MOST_ROWS = 16, 128
"""Of a block: the fewest that matrix units take, and what is enough to reuse a tile of weights."""
SUM_BLOCK = 1024


@triton.jit
def block_of(begin_ptr, index, E: tl.constexpr, E_TILE: tl.constexpr, BLOCK_M: tl.constexpr):
    """Block `index`: its expert (E: there is no such block), its first place in the sorted assignments, and the expert's end."""
    e_E = tl.arange(0, E_TILE)
    begin_E = tl.load(begin_ptr + e_E, mask=e_E < E, other=0)
    count_E = tl.load(begin_ptr + e_E + 1, mask=e_E < E, other=0) - begin_E
    blocks_E = (count_E + BLOCK_M - 1) // BLOCK_M
    ends_E = tl.cumsum(blocks_E, 0)
    expert = tl.sum(((ends_E <= index) & (e_E < E)).to(tl.int32), 0)
    is_mine_E = e_E == expert
    skipped = tl.sum(tl.where(is_mine_E, ends_E - blocks_E, 0), 0)
    begin = tl.sum(tl.where(is_mine_E, begin_E, 0), 0)
    return expert, begin + (index - skipped) * BLOCK_M, begin + tl.sum(tl.where(is_mine_E, count_E, 0), 0)


@triton.jit
def product_tile(acc_MN, x_MC, weight_ptr, n_N, c_C, mask, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """The sum so far plus the products with a tile of a matrix [.., COLUMNS]."""
    w_NC = tl.load(weight_ptr + n_N.to(tl.int64)[:, None] * COLUMNS + c_C[None, :], mask=mask, other=0)
    return acc_MN + tl.dot(x_MC.to(DTYPE), tl.trans(w_NC.to(DTYPE)), input_precision="ieee")


@triton.jit
def gate_up_kernel(
    x_ptr, weight_ptr, bias_ptr, inner_ptr, order_ptr, begin_ptr, x_stride,
    D: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr, E: tl.constexpr, E_TILE: tl.constexpr,
    STEP: tl.constexpr, UP: tl.constexpr, HAS_BIAS: tl.constexpr, NAME: tl.constexpr, LIMIT: tl.constexpr, GAIN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """BLOCK_N inner values of one block of rows. Outputs STEP * i of the weights are gates, UP further are ups. Grid: (blocks, tiles)."""
    expert, first, end = block_of(begin_ptr, tl.program_id(0), E, E_TILE, BLOCK_M)
    if expert < E:
        place_M, i_N = first + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_M, mask_N = place_M < end, i_N < INNER
        token_M = tl.load(order_ptr + place_M, mask=mask_M, other=0) // TOP_K
        weights, gate_N = weight_ptr + expert.to(tl.int64) * (2 * INNER * D), i_N * STEP
        gate_MN, up_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, D, BLOCK_C):
            c_C = start + tl.arange(0, BLOCK_C)
            mask_NC = mask_N[:, None] & (c_C < D)[None, :]
            mask_MC = mask_M[:, None] & (c_C < D)[None, :]
            x_MC = tl.load(x_ptr + token_M.to(tl.int64)[:, None] * x_stride + c_C[None, :], mask=mask_MC, other=0)
            gate_MN = product_tile(gate_MN, x_MC, weights, gate_N, c_C, mask_NC, D, DTYPE)
            up_MN = product_tile(up_MN, x_MC, weights, gate_N + UP, c_C, mask_NC, D, DTYPE)
        if HAS_BIAS:
            biases = bias_ptr + expert * (2 * INNER)
            gate_MN += tl.load(biases + gate_N, mask=mask_N, other=0).to(tl.float32)[None, :]
            up_MN += tl.load(biases + gate_N + UP, mask=mask_N, other=0).to(tl.float32)[None, :]
        if LIMIT is None:
            inner_MN = activated(gate_MN, NAME) * up_MN
        else:
            gate_MN = tl.minimum(gate_MN, LIMIT)
            inner_MN = gate_MN / (1 + tl.exp(gate_MN * -GAIN)) * (tl.minimum(tl.maximum(up_MN, -LIMIT), LIMIT) + 1)
        mask_MN = mask_M[:, None] & mask_N[None, :]
        tl.store(inner_ptr + place_M.to(tl.int64)[:, None] * INNER + i_N[None, :], inner_MN, mask=mask_MN)


@triton.jit
def down_kernel(
    inner_ptr, weight_ptr, bias_ptr, share_ptr, part_ptr, order_ptr, begin_ptr,
    D: tl.constexpr, INNER: tl.constexpr, E: tl.constexpr, E_TILE: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of one block of rows, times the rows' weights, each to its assignment's place. Grid: (blocks, tiles)."""
    expert, first, end = block_of(begin_ptr, tl.program_id(0), E, E_TILE, BLOCK_M)
    if expert < E:
        place_M, d_N = first + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_M, mask_N = place_M < end, d_N < D
        acc_MN, weights = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), weight_ptr + expert.to(tl.int64) * (D * INNER)
        for start in range(0, INNER, BLOCK_C):
            c_C = start + tl.arange(0, BLOCK_C)
            mask_NC = mask_N[:, None] & (c_C < INNER)[None, :]
            mask_MC = mask_M[:, None] & (c_C < INNER)[None, :]
            inner_MC = tl.load(inner_ptr + place_M.to(tl.int64)[:, None] * INNER + c_C[None, :], mask=mask_MC, other=0)
            acc_MN = product_tile(acc_MN, inner_MC, weights, d_N, c_C, mask_NC, INNER, DTYPE)
        if HAS_BIAS:
            acc_MN += tl.load(bias_ptr + expert * D + d_N, mask=mask_N, other=0).to(tl.float32)[None, :]
        assignment_M = tl.load(order_ptr + place_M, mask=mask_M, other=0)
        acc_MN *= tl.load(share_ptr + assignment_M, mask=mask_M, other=0).to(tl.float32)[:, None]
        mask_MN = mask_M[:, None] & mask_N[None, :]
        tl.store(part_ptr + assignment_M.to(tl.int64)[:, None] * D + d_N[None, :], acc_MN, mask=mask_MN)


@triton.jit
def sum_kernel(part_ptr, out_ptr, D: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of one token's results. Grid: (tokens, blocks of the hidden size)."""
    token, d_D = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc_D = tl.zeros([BLOCK], tl.float32)
    for place in range(0, TOP_K):
        acc_D += tl.load(part_ptr + (token * TOP_K + place) * D + d_D, mask=d_D < D, other=0).to(tl.float32)
    tl.store(out_ptr + token * D + d_D, acc_D, mask=d_D < D)


def suits(x_TD: Tensor, stack: ExpertStack) -> bool:
    """Whether the kernels can compute this."""
    weights = stack.gate_up_EJD, stack.down_EDI
    is_here = (x_TD.is_cuda or INTERPRETED) and len(x_TD) > 0
    return is_here and x_TD.dtype in LANGUAGE_TYPES and all(each.is_contiguous() and each.dtype == x_TD.dtype for each in weights)


def run_experts(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, stack: ExpertStack, *, combine: GatedProduct) -> Tensor:
    """As the reference's."""
    out_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    order, begin_E = sorted_by_expert(experts_TK, stack.num_experts)
    for launch in launches(x_TD, weights_TK, (order, begin_E), stack, combine=combine, out_TD=out_TD):
        launch.run()
    return out_TD


def sorted_by_expert(experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The assignments (token * K + place) sorted by their experts [T * K], and where each expert's begin, and the last one's end
    [E + 1]."""
    chosen, order = experts_TK.flatten().sort(stable=True)
    bounds = torch.arange(num_experts + 1, device=chosen.device, dtype=chosen.dtype)
    return order, torch.searchsorted(chosen, bounds, out_int32=True)


def launches(
    x_TD: Tensor,
    weights_TK: Tensor,
    assignments: tuple[Tensor, Tensor],
    stack: ExpertStack,
    *,
    combine: GatedProduct,
    out_TD: Tensor,
    chosen: tuple[Configuration, Configuration] | None = None,
) -> list[Launch]:
    """The kernels to run, in order, into `out_TD`; `assignments` are those of `sorted_by_expert`."""
    (num_tokens, top_k), num_experts, (order, begin_E) = weights_TK.shape, stack.num_experts, assignments
    hidden, inner = stack.down_EDI.shape[1:]
    x_TD = x_TD if x_TD.stride(1) == 1 else x_TD.contiguous()
    average = triton.next_power_of_2(triton.cdiv(num_tokens * top_k, num_experts))
    shape = {"bytes": x_TD.element_size(), "rows": min(max(average, LEAST_ROWS), MOST_ROWS)}
    first, second = chosen or (chosen_for("experts_gate_up", shape, x_TD.device), chosen_for("experts_down", shape, x_TD.device))
    inner_AI = torch.empty(num_tokens * top_k, inner, dtype=x_TD.dtype, device=x_TD.device)
    part_AD = torch.empty(num_tokens * top_k, hidden, dtype=x_TD.dtype, device=x_TD.device)
    sizes = {"D": hidden, "INNER": inner, "E": num_experts, "E_TILE": triton.next_power_of_2(num_experts)}
    sizes["DTYPE"] = LANGUAGE_TYPES[torch.float32 if INTERPRETED else x_TD.dtype]
    places = {"order_ptr": order, "begin_ptr": begin_E}
    step, up = (2, 1) if stack.is_interleaved else (1, inner)
    return [
        Launch(
            gate_up_kernel,
            (most_blocks(num_tokens * top_k, num_experts, first.block("m")), triton.cdiv(inner, first.block("n"))),
            {
                "x_ptr": x_TD, "weight_ptr": stack.gate_up_EJD, "bias_ptr": stack.gate_up_bias_EJ, "inner_ptr": inner_AI,
                "x_stride": x_TD.stride(0), **places,
            },
            {
                **sizes, **tile(first), "TOP_K": top_k, "STEP": step, "UP": up, "HAS_BIAS": stack.gate_up_bias_EJ is not None,
                "NAME": combine.activation, "LIMIT": combine.limit, "GAIN": combine.gain,
            },
            first.num_warps,
            first.num_stages,
        ),
        Launch(
            down_kernel,
            (most_blocks(num_tokens * top_k, num_experts, second.block("m")), triton.cdiv(hidden, second.block("n"))),
            {
                "inner_ptr": inner_AI, "weight_ptr": stack.down_EDI, "bias_ptr": stack.down_bias_ED,
                "share_ptr": weights_TK.contiguous(), "part_ptr": part_AD, **places,
            },
            {**sizes, **tile(second), "HAS_BIAS": stack.down_bias_ED is not None},
            second.num_warps,
            second.num_stages,
        ),
        Launch(
            sum_kernel,
            (num_tokens, triton.cdiv(hidden, SUM_BLOCK)),
            {"part_ptr": part_AD, "out_ptr": out_TD},
            {"D": hidden, "TOP_K": top_k, "BLOCK": SUM_BLOCK},
        ),
    ]  # fmt: skip


def most_blocks(num_assignments: int, num_experts: int, block: int) -> int:
    """The most blocks of rows that so many assignments can become: each expert's last block may hold a single row."""
    return min(num_assignments, (num_assignments + num_experts * (block - 1)) // block)


def tile(chosen: Configuration) -> dict[str, int]:
    """The sizes of a tile, as the kernels call them."""
    return {"BLOCK_M": chosen.block("m"), "BLOCK_N": chosen.block("n"), "BLOCK_C": chosen.block("c")}
