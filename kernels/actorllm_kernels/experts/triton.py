"""A mixture's experts by Triton kernels: assignments sorted by expert, a grouped product for gates and ups, one for outputs.

An expert's rows are cut into blocks, so that a block has one expert. How many blocks there are is known on the device alone; the
grid has as many as there can be with so many tokens, and a program without a block ends at once. So nothing waits for the
device, and shapes depend on the number of tokens only. A token's results are summed in the order of its experts.

Weights are values or codes, which become floating point in registers: activations are not rounded. One scale of an output
multiplies the finished sum, scales of groups multiply the sum over a tile, which lies within a group.

Legend: T tokens, D hidden size, E experts, K experts of one token, I an expert's inner size, J = 2 I; of a tile M rows, N outputs
and C columns of weights, which hold one input each, or two (4-bit codes: c and c + COLUMNS).
"""

# pyright: reportMissingImports=false, reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for
from actorllm_kernels.experts.stacks import ExpertStack, MatrixStack
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.gated.triton import activated
from actorllm_kernels.launch import (
    INTERPRETED,
    LANGUAGE_TYPES,
    Launch,
    dense_rows,
    product_type,
    require_dense,
    require_dense_rows,
)
from actorllm_kernels.linear.triton import codes_product, tile_columns, tile_rows, tiles_fit
from actorllm_kernels.triton_forms import FORMS, FP8, FP8_SHIFT, INT4, PLAIN, decoded

SUM_BLOCK = SORT_BLOCK = 1024
"""No configuration: both read little beside the weights, in loads as wide as there are."""


@triton.jit(do_not_specialize=["count"])
def sort_kernel(expert_ptr, order_ptr, begin_ptr, count, E: tl.constexpr, BLOCK: tl.constexpr):
    """One expert's assignments in their order, behind those of the experts before it. Grid: (experts,)."""
    expert, n_N = tl.program_id(0), tl.arange(0, BLOCK)
    before_N = tl.zeros([BLOCK], tl.int32)
    for first in range(0, count, BLOCK):
        before_N += (tl.load(expert_ptr + first + n_N, mask=first + n_N < count, other=E) < expert).to(tl.int32)
    place = tl.sum(before_N, axis=0)
    tl.store(begin_ptr + expert, place)
    for first in range(0, count, BLOCK):
        is_mine_N = (tl.load(expert_ptr + first + n_N, mask=first + n_N < count, other=E) == expert).to(tl.int32)
        tl.store(order_ptr + place + tl.cumsum(is_mine_N, axis=0) - 1, first + n_N, mask=is_mine_N > 0)
        place += tl.sum(is_mine_N, axis=0)
    if expert == E - 1:
        tl.store(begin_ptr + E, place)


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
def load_inputs(ptr, offset_M, mask_M, first, FORM: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr):
    """[M, C] the inputs of the columns from `first` on, of the rows at `offset_M`; where a column has two, the second, too."""
    c_C = first + tl.arange(0, BLOCK_C)
    offsets_MC = offset_M[:, None] + c_C[None, :]
    mask_MC = mask_M[:, None] & (c_C < COLUMNS)[None, :]
    x_MC = tl.load(ptr + offsets_MC, mask=mask_MC, other=0)
    return x_MC, tl.load(ptr + offsets_MC + COLUMNS, mask=mask_MC, other=0) if FORM == INT4 else x_MC


@triton.jit
def add_product(
    acc_MN, x_MC, high_MC, weight_ptr, scale_ptr, n_N, mask_N, first,
    FORM: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_C: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The sum so far plus the products with the columns from `first` of some outputs; `high_MC` are the second inputs'."""
    c_C = first + tl.arange(0, BLOCK_C)
    mask_NC = mask_N[:, None] & (c_C < COLUMNS)[None, :]
    w_NC = tl.load(weight_ptr + n_N.to(tl.int64)[:, None] * COLUMNS + c_C[None, :], mask=mask_NC, other=0)
    if FORM == INT4:
        low_NC, high_NC = (w_NC & 0xF).to(tl.int8) - 8, (w_NC >> 4).to(tl.int8) - 8
        acc_MN = codes_product(
            high_MC, high_NC, acc_MN, scale_ptr, n_N, mask_N, GROUPS, (first + COLUMNS) // GROUP, GROUPS > 1, DTYPE
        )
        return codes_product(x_MC, low_NC, acc_MN, scale_ptr, n_N, mask_N, GROUPS, first // GROUP, GROUPS > 1, DTYPE)
    return codes_product(
        x_MC, decoded(w_NC, FORM, DTYPE), acc_MN, scale_ptr, n_N, mask_N, GROUPS, first // GROUP, GROUPS > 1, DTYPE
    )


@triton.jit
def scaled(acc_MN, scale_ptr, n_N, mask_N, FORM: tl.constexpr, GROUPS: tl.constexpr):
    """The sum of products with codes times the scales of outputs that have one each."""
    if FORM != PLAIN and GROUPS == 1:
        acc_MN *= tl.load(scale_ptr + n_N, mask=mask_N, other=0)[None, :]
        if FORM == FP8:
            acc_MN *= FP8_SHIFT
    return acc_MN


@triton.jit
def gate_up_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, inner_ptr, order_ptr, begin_ptr, x_stride,
    INNER: tl.constexpr, TOP_K: tl.constexpr, E: tl.constexpr, E_TILE: tl.constexpr, STEP: tl.constexpr, UP: tl.constexpr,
    HAS_BIAS: tl.constexpr, NAME: tl.constexpr, LIMIT: tl.constexpr, GAIN: tl.constexpr, FORM: tl.constexpr,
    COLUMNS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """BLOCK_N inner values of a block of rows. Outputs STEP * i of weights are gates, UP further ups. Grid: (blocks, tiles)."""
    expert, first, end = block_of(begin_ptr, tl.program_id(0), E, E_TILE, BLOCK_M)
    if expert < E:
        place_M, i_N = first + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_M, mask_N = place_M < end, i_N < INNER
        token_M = tl.load(order_ptr + place_M, mask=mask_M, other=0) // TOP_K
        outputs, gate_N = expert.to(tl.int64) * (2 * INNER), i_N * STEP
        weights, scales = weight_ptr + outputs * COLUMNS, scale_ptr
        if FORM != PLAIN:
            scales = scale_ptr + outputs * GROUPS
        gate_MN, up_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, COLUMNS, BLOCK_C):
            x_MC, high_MC = load_inputs(x_ptr, token_M.to(tl.int64) * x_stride, mask_M, start, FORM, COLUMNS, BLOCK_C)
            gate_MN = add_product(
                gate_MN, x_MC, high_MC, weights, scales, gate_N, mask_N, start, FORM, COLUMNS, GROUP, GROUPS, BLOCK_C, DTYPE
            )
            up_MN = add_product(
                up_MN, x_MC, high_MC, weights, scales, gate_N + UP, mask_N, start, FORM, COLUMNS, GROUP, GROUPS, BLOCK_C, DTYPE
            )
        gate_MN = scaled(gate_MN, scales, gate_N, mask_N, FORM, GROUPS)
        up_MN = scaled(up_MN, scales, gate_N + UP, mask_N, FORM, GROUPS)
        if HAS_BIAS:
            biases = bias_ptr + expert * (2 * INNER)
            gate_MN += tl.load(biases + gate_N, mask=mask_N, other=0).to(tl.float32)[None, :]
            up_MN += tl.load(biases + gate_N + UP, mask=mask_N, other=0).to(tl.float32)[None, :]
        if LIMIT is None:
            inner_MN = activated(gate_MN, NAME) * up_MN
        else:
            gate_MN = tl.minimum(gate_MN, LIMIT, propagate_nan=tl.PropagateNan.ALL)
            up_MN = tl.maximum(up_MN, -LIMIT, propagate_nan=tl.PropagateNan.ALL)
            up_MN = tl.minimum(up_MN, LIMIT, propagate_nan=tl.PropagateNan.ALL)
            inner_MN = gate_MN / (1 + tl.exp(gate_MN * -GAIN)) * (up_MN + 1)
        mask_MN = mask_M[:, None] & mask_N[None, :]
        tl.store(inner_ptr + place_M.to(tl.int64)[:, None] * INNER + i_N[None, :], inner_MN, mask=mask_MN)


@triton.jit
def down_kernel(
    inner_ptr, weight_ptr, scale_ptr, bias_ptr, share_ptr, part_ptr, order_ptr, begin_ptr,
    D: tl.constexpr, INNER: tl.constexpr, E: tl.constexpr, E_TILE: tl.constexpr, HAS_BIAS: tl.constexpr, FORM: tl.constexpr,
    COLUMNS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of one block of rows, times the rows' weights, each to its assignment's place. Grid: (blocks, tiles)."""
    expert, first, end = block_of(begin_ptr, tl.program_id(0), E, E_TILE, BLOCK_M)
    if expert < E:
        place_M, d_N = first + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_M, mask_N = place_M < end, d_N < D
        outputs = expert.to(tl.int64) * D
        weights, scales = weight_ptr + outputs * COLUMNS, scale_ptr
        if FORM != PLAIN:
            scales = scale_ptr + outputs * GROUPS
        acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, COLUMNS, BLOCK_C):
            inner_MC, high_MC = load_inputs(inner_ptr, place_M.to(tl.int64) * INNER, mask_M, start, FORM, COLUMNS, BLOCK_C)
            acc_MN = add_product(
                acc_MN, inner_MC, high_MC, weights, scales, d_N, mask_N, start, FORM, COLUMNS, GROUP, GROUPS, BLOCK_C, DTYPE
            )
        acc_MN = scaled(acc_MN, scales, d_N, mask_N, FORM, GROUPS)
        if HAS_BIAS:
            acc_MN += tl.load(bias_ptr + expert * D + d_N, mask=mask_N, other=0).to(tl.float32)[None, :]
        assignment_M = tl.load(order_ptr + place_M, mask=mask_M, other=0)
        acc_MN *= tl.load(share_ptr + assignment_M, mask=mask_M, other=0).to(tl.float32)[:, None]
        mask_MN = mask_M[:, None] & mask_N[None, :]
        tl.store(part_ptr + assignment_M.to(tl.int64)[:, None] * D + d_N[None, :], acc_MN, mask=mask_MN)


@triton.jit
def sum_kernel(part_ptr, expert_ptr, out_ptr, D: tl.constexpr, TOP_K: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of one token's results; experts that there are not have none. Grid: (tokens, blocks of the hidden size)."""
    token, d_D = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc_D = tl.zeros([BLOCK], tl.float32)
    for place in range(0, TOP_K):
        expert = tl.load(expert_ptr + token * TOP_K + place)
        size = tl.where((expert >= 0) & (expert < E), D, 0)
        acc_D += tl.load(part_ptr + (token * TOP_K + place) * D + d_D, mask=d_D < size, other=0).to(tl.float32)
    tl.store(out_ptr + token * D + d_D, acc_D, mask=d_D < D)


def suits(x_TD: Tensor, stack: ExpertStack) -> bool:
    """Whether the kernels can compute this."""
    is_here = (x_TD.is_cuda or INTERPRETED) and len(x_TD) > 0 and x_TD.dtype in LANGUAGE_TYPES
    return is_here and takes(stack.gate_up, x_TD.shape[1], x_TD.dtype) and takes(stack.down, stack.sizes[1], x_TD.dtype)


def takes(matrices: MatrixStack, num_inputs: int, dtype: torch.dtype) -> bool:
    """Whether the kernels can read these weights beside activations of `dtype`."""
    if not matrices.values_EOI.is_contiguous() or matrices.num_inputs != num_inputs:
        return False
    if matrices.scales_EOG is None:
        return matrices.values_EOI.dtype == dtype
    return matrices.scales_EOG.is_contiguous() and tiles_fit(matrices.values_EOI.shape[2], matrices.group_len, num_inputs)


def run_experts(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, stack: ExpertStack, *, combine: GatedProduct) -> Tensor:
    """As the reference's."""
    out_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    weights_TK, experts_TK = weights_TK.contiguous(), experts_TK.contiguous()
    for launch in launches(dense_rows(x_TD), weights_TK, experts_TK, stack, combine=combine, out_TD=out_TD):
        launch.run()
    return out_TD


def sort_launch(experts_TK: Tensor, *, order: Tensor, begin_E: Tensor) -> Launch:
    """Into `order` [T * K] int32 the assignments (token * K + place) sorted by their experts, and into `begin_E` [E + 1] int32
    where each expert's begin, and the last one's end."""
    arguments = {"expert_ptr": experts_TK, "order_ptr": order, "begin_ptr": begin_E, "count": experts_TK.numel()}
    num_experts = len(begin_E) - 1
    return Launch(sort_kernel, (num_experts,), arguments, {"E": num_experts, "BLOCK": SORT_BLOCK})


def launches(
    x_TD: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    stack: ExpertStack,
    *,
    combine: GatedProduct,
    out_TD: Tensor,
    chosen: tuple[Configuration, Configuration] | None = None,
) -> list[Launch]:
    """The kernels to run, in order, into `out_TD`."""
    biases = {"gate_up_bias_EJ": stack.gate_up_bias_EJ, "down_bias_ED": stack.down_bias_ED}
    require_dense(weights_TK=weights_TK, experts_TK=experts_TK, **biases)
    require_dense_rows(x_TD=x_TD)
    (num_tokens, top_k), num_experts = weights_TK.shape, stack.num_experts
    order = torch.empty(num_tokens * top_k, dtype=torch.int32, device=x_TD.device)
    begin_E = torch.empty(num_experts + 1, dtype=torch.int32, device=x_TD.device)
    hidden, inner = stack.sizes
    first, second = chosen or chosen_for_both(x_TD, num_tokens * top_k, stack)
    inner_AI = torch.empty(num_tokens * top_k, inner, dtype=x_TD.dtype, device=x_TD.device)
    part_AD = torch.empty(num_tokens * top_k, hidden, dtype=x_TD.dtype, device=x_TD.device)
    sizes = {"INNER": inner, "E": num_experts, "E_TILE": triton.next_power_of_2(num_experts)}
    sizes["DTYPE"] = product_type(x_TD.dtype)
    places = {"order_ptr": order, "begin_ptr": begin_E}
    step, up = (2, 1) if stack.is_interleaved else (1, inner)
    return [
        sort_launch(experts_TK, order=order, begin_E=begin_E),
        Launch(
            gate_up_kernel,
            (most_blocks(num_tokens * top_k, num_experts, first.block("m")), triton.cdiv(inner, first.block("n"))),
            {
                "x_ptr": x_TD, **pointers(stack.gate_up), "bias_ptr": stack.gate_up_bias_EJ, "inner_ptr": inner_AI,
                "x_stride": x_TD.stride(0), **places,
            },
            {
                **sizes, **tile(stack.gate_up, first), "TOP_K": top_k, "STEP": step, "UP": up,
                "HAS_BIAS": stack.gate_up_bias_EJ is not None,
                "NAME": combine.activation, "LIMIT": combine.limit, "GAIN": combine.gain,
            },
            first,
        ),
        Launch(
            down_kernel,
            (most_blocks(num_tokens * top_k, num_experts, second.block("m")), triton.cdiv(hidden, second.block("n"))),
            {
                "inner_ptr": inner_AI, **pointers(stack.down), "bias_ptr": stack.down_bias_ED,
                "share_ptr": weights_TK, "part_ptr": part_AD, **places,
            },
            {**sizes, **tile(stack.down, second), "D": hidden, "HAS_BIAS": stack.down_bias_ED is not None},
            second,
        ),
        Launch(
            sum_kernel,
            (num_tokens, triton.cdiv(hidden, SUM_BLOCK)),
            {"part_ptr": part_AD, "expert_ptr": experts_TK, "out_ptr": out_TD},
            {"D": hidden, "TOP_K": top_k, "E": num_experts, "BLOCK": SUM_BLOCK},
        ),
    ]  # fmt: skip


def chosen_for_both(x_TD: Tensor, num_assignments: int, stack: ExpertStack) -> tuple[Configuration, Configuration]:
    """How to cut the product of gates and ups, and that of outputs."""
    shape = {"bytes": x_TD.element_size(), "rows": tile_rows(triton.cdiv(num_assignments, stack.num_experts))}
    first, second = ({**shape, "bits": matrices.num_bits} for matrices in (stack.gate_up, stack.down))
    return chosen_for("experts_gate_up", first, x_TD.device), chosen_for("experts_down", second, x_TD.device)


def most_blocks(num_assignments: int, num_experts: int, block: int) -> int:
    """The most blocks of rows that so many assignments can become: each expert's last block may hold a single row."""
    return min(num_assignments, (num_assignments + num_experts * (block - 1)) // block)


def pointers(matrices: MatrixStack) -> dict[str, Tensor | None]:
    """A matrix's arguments: 8-bit floats go as bytes, because not every GPU knows them."""
    values = matrices.values_EOI
    return {
        "weight_ptr": values.view(torch.uint8) if values.dtype == torch.float8_e4m3fn else values,
        "scale_ptr": matrices.scales_EOG,
    }  # fmt: skip


def tile(matrices: MatrixStack, chosen: Configuration) -> dict[str, int]:
    """A matrix's constants, and the sizes of a tile, as the kernels call them."""
    form = INT4 if matrices.is_packed else FORMS.get(matrices.values_EOI.dtype, PLAIN)
    block_c = tile_columns(chosen.block("c"), matrices.group_len, matrices.num_inputs)
    return {
        "FORM": form.value, "COLUMNS": matrices.values_EOI.shape[2], "GROUP": matrices.group_len, "GROUPS": matrices.num_groups,
        "BLOCK_M": chosen.block("m"), "BLOCK_N": chosen.block("n"), "BLOCK_C": block_c,
    }  # fmt: skip
