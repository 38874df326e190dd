"""The Triton kernels of sampling.

How far a token lies below its row's best, over the temperature, is a float32 >= 0: the bits of such numbers, as integers, have
their order. So the last token that top-k or top-p keeps is found digit by digit (16 values each, 8 digits), without
sorting: a pass over the row adds up, for each value of the next digit, the tokens or the probability that it holds. Rows are cut
into parts with a program each; every pass begins with what all parts of the one before it found. Probabilities are
integers (exp(score) * 2^43), so that sums depend on no order: the same tokens are kept however a row is cut.

Legend: S samples, J values of a digit, N lanes (tokens of one tile), P parts of a row.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
import triton
import triton.language as tl

from actorllm_kernels.sampling import parameters

GREEDY_BELOW: tl.constexpr = tl.constexpr(parameters.GREEDY_BELOW)
TEMPERATURE: tl.constexpr = tl.constexpr(parameters.TEMPERATURE)
TOP_K: tl.constexpr = tl.constexpr(parameters.TOP_K)
TOP_P: tl.constexpr = tl.constexpr(parameters.TOP_P)
MIN_P: tl.constexpr = tl.constexpr(parameters.MIN_P)
REPETITION: tl.constexpr = tl.constexpr(parameters.REPETITION)
PRESENCE: tl.constexpr = tl.constexpr(parameters.PRESENCE)
FREQUENCY: tl.constexpr = tl.constexpr(parameters.FREQUENCY)
COLUMNS: tl.constexpr = tl.constexpr(parameters.NUM_PARAMETERS)

VALUES: tl.constexpr = tl.constexpr(16)
PASSES: tl.constexpr = tl.constexpr(8)
ONE: tl.constexpr = tl.constexpr(8796093022208.0)
"""2^43: the best token's probability. Less than 2^20 of them add up below 2^63."""
NOWHERE: tl.constexpr = tl.constexpr(0x7F800001)
"""Farther than infinity: the edge of a row that keeps everything."""
GAMMA: tl.constexpr = tl.constexpr(0x9E3779B97F4A7C15)
MIX_1: tl.constexpr = tl.constexpr(0xBF58476D1CE4E5B9)
MIX_2: tl.constexpr = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def mixed(value):
    """The finalizer of SplitMix64 over uint64."""
    value = (value ^ (value >> 30)) * MIX_1
    value = (value ^ (value >> 27)) * MIX_2
    return value ^ (value >> 31)


@triton.jit
def parameter(parameter_ptr, row, COLUMN: tl.constexpr):
    return tl.load(parameter_ptr + row * COLUMNS + COLUMN)


@triton.jit
def row_best(best_ptr, sample, PARTS: tl.constexpr, BLOCK_P: tl.constexpr):
    """The largest logit of the row; infinite where there is a NaN or nothing to sample."""
    p_P = tl.arange(0, BLOCK_P)
    return tl.max(tl.load(best_ptr + sample * PARTS + p_P, mask=p_P < PARTS, other=-float("inf")), axis=0)


@triton.jit
def distances(logit_ptr, id_N, mask_N, column_stride, best, temperature):
    """The bits of how far the tokens lie below the best; those of no token are NOWHERE."""
    logit_N = tl.load(logit_ptr + id_N * column_stride, mask=mask_N, other=-float("inf"))
    distance_N = tl.abs(tl.div_rn(best - logit_N, tl.zeros_like(logit_N) + temperature))  # -0 less 0 is -0
    return tl.where(mask_N, distance_N.to(tl.int32, bitcast=True), NOWHERE)


@triton.jit
def weights(bits):
    """Probabilities over the best one's; of NOWHERE, a NaN's bits, nothing."""
    distance = tl.minimum(bits, 0x7F800000).to(tl.float32, bitcast=True)
    return (tl.exp(-distance) * ONE).to(tl.int64)


@triton.jit
def next_digit(sum_ptr, prefix, goal, sample, PARTS: tl.constexpr, BLOCK_P: tl.constexpr):
    """The prefix with one more digit, and what of the goal is left behind it, by what each value of the digit holds."""
    p_P, j_J = tl.arange(0, BLOCK_P), tl.arange(0, VALUES)
    places_PJ = (sample * PARTS + p_P[:, None]) * VALUES + j_J[None, :]
    sum_J = tl.sum(tl.load(sum_ptr + places_PJ, mask=(p_P < PARTS)[:, None] & (j_J >= 0)[None, :], other=0), axis=0)
    is_before_J = tl.cumsum(sum_J, axis=0) < goal
    digit = tl.minimum(tl.sum(is_before_J.to(tl.int32), axis=0), VALUES - 1)
    return prefix * VALUES + digit, goal - tl.sum(tl.where(j_J < digit, sum_J, 0), axis=0)


@triton.jit
def first_goal(sum_ptr, top_p, sample, PARTS: tl.constexpr, BLOCK_P: tl.constexpr):
    """The probability that top-p asks for: the least integer >= top_p of all that the first pass has found, and not nothing."""
    p_P, j_J = tl.arange(0, BLOCK_P), tl.arange(0, VALUES)
    places_PJ = (sample * PARTS + p_P[:, None]) * VALUES + j_J[None, :]
    sum_PJ = tl.load(sum_ptr + places_PJ, mask=(p_P < PARTS)[:, None] & (j_J >= 0)[None, :], other=0)
    wanted = tl.sum(tl.sum(sum_PJ, axis=1), axis=0).to(tl.float64) * top_p
    goal = wanted.to(tl.int64)
    return tl.maximum(goal + (goal.to(tl.float64) < wanted).to(tl.int64), 1)


@triton.jit
def reached(sum_ptr, state_ptr, top_p, sample, number, BY_WEIGHT: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr):
    """Prefix and goal after `number` > 0 passes; the sums and the state are those of the last one."""
    prefix, goal = tl.load(state_ptr + sample * 2), tl.load(state_ptr + sample * 2 + 1)
    if BY_WEIGHT:  # noqa: SIM102  constants are decided when compiling, tensors later
        if number == 1:
            goal = first_goal(sum_ptr, top_p, sample, PARTS, BLOCK_P)
    return next_digit(sum_ptr, prefix, goal, sample, PARTS, BLOCK_P)


@triton.jit
def best_kernel(logit_ptr, best_ptr, id_ptr, row_stride, column_stride, V: tl.constexpr, PARTS: tl.constexpr,
                PART: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """The largest logit of one part, and its first token. Grid: (samples, parts)."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n_N = tl.arange(0, LANES)
    best_N, id_N = tl.full([LANES], -float("inf"), tl.float32), tl.full([LANES], V, tl.int32)
    is_nan_N = tl.zeros([LANES], tl.int32)
    for first in range(part * PART, tl.minimum(part * PART + PART, V), LANES):
        place_N = first + n_N
        logit_N = tl.load(logit_ptr + sample * row_stride + place_N * column_stride, mask=place_N < V, other=-float("inf"))
        is_nan_N |= (logit_N != logit_N).to(tl.int32)
        is_better_N = (logit_N > best_N) | ((id_N == V) & (place_N < V))
        best_N, id_N = tl.where(is_better_N, logit_N, best_N), tl.where(is_better_N, place_N, id_N)
    is_nan = tl.max(is_nan_N, axis=0) != 0
    best = tl.max(tl.where(is_nan, float("inf"), best_N), axis=0)
    tl.store(best_ptr + sample * PARTS + part, best)
    tl.store(id_ptr + sample * PARTS + part, tl.min(tl.where(best_N == best, id_N, V), axis=0))


@triton.jit(do_not_specialize=["number"], do_not_specialize_on_alignment=["row_ptr"])
def search_kernel(
    logit_ptr, best_ptr, row_ptr, parameter_ptr, edge_ptr, last_sum_ptr, last_state_ptr, sum_ptr, state_ptr,
    row_stride, column_stride, number,
    BY_WEIGHT: tl.constexpr, HAS_TOP_K: tl.constexpr, V: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    PART: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass `number` over one part: what each value of the next digit holds, by tokens (top-k) or by weight (top-p). Grid:
    (samples, parts). Of the edge of top-k, `edge_ptr`, the second search counts as many tokens as top-k keeps."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(row_ptr + sample)
    best, temperature = row_best(best_ptr, sample, PARTS, BLOCK_P), parameter(parameter_ptr, row, TEMPERATURE)
    top_k, top_p = parameter(parameter_ptr, row, TOP_K).to(tl.int64), parameter(parameter_ptr, row, TOP_P)
    is_asked = (top_p < 1) if BY_WEIGHT else (top_k < V)
    if is_asked & (tl.abs(best) < float("inf")) & (temperature >= GREEDY_BELOW):
        prefix, goal = tl.zeros([], tl.int64), top_k
        if number > 0:
            prefix, goal = reached(last_sum_ptr, last_state_ptr, top_p, sample, number, BY_WEIGHT, PARTS, BLOCK_P)
        if part == 0:
            tl.store(state_ptr + sample * 2, prefix)
            tl.store(state_ptr + sample * 2 + 1, goal)
        shift = 4 * (PASSES - 1 - number)
        n_N, j_J = tl.arange(0, LANES), tl.arange(0, VALUES)
        edge, num_ties = tl.full([], NOWHERE, tl.int64), tl.zeros([], tl.int64)
        if BY_WEIGHT and HAS_TOP_K:
            edge, num_ties = tl.load(edge_ptr + sample * 2), tl.load(edge_ptr + sample * 2 + 1)
        sum_JN = tl.zeros([VALUES, LANES], tl.int64)
        for first in range(part * PART, tl.minimum(part * PART + PART, V), LANES):
            id_N = first + n_N
            bits_N = distances(logit_ptr + sample * row_stride, id_N, id_N < V, column_stride, best, temperature.to(tl.float32))
            digits_N = bits_N >> shift
            digit_N = tl.where(((digits_N >> 4) == prefix) & (bits_N < edge), digits_N & (VALUES - 1), VALUES)
            value_N = weights(bits_N) if BY_WEIGHT else tl.full([LANES], 1, tl.int64)
            sum_JN += tl.where(digit_N[None, :] == j_J[:, None], value_N[None, :], 0)
        sum_J = tl.sum(sum_JN, axis=1)
        if BY_WEIGHT and HAS_TOP_K:  # noqa: SIM102
            if part == 0:
                digits = edge >> shift
                is_digit_J = ((digits >> 4) == prefix) & ((digits & (VALUES - 1)) == j_J)
                sum_J += tl.where(is_digit_J, num_ties * weights(edge.to(tl.int32)), 0)
        tl.store(sum_ptr + (sample * PARTS + part) * VALUES + j_J, sum_J)


@triton.jit(do_not_specialize_on_alignment=["row_ptr"])
def settle_kernel(
    best_ptr, row_ptr, parameter_ptr, edge_ptr, last_sum_ptr, last_state_ptr, final_ptr,
    BY_WEIGHT: tl.constexpr, HAS_TOP_K: tl.constexpr, HAS_TOP_P: tl.constexpr, V: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Where a row's tokens end: a distance, and how many tokens are kept of those that lie just there. Grid: (samples,).

    After the first search that is top-k's edge; after the second one top-p's, or min-p's if that is nearer.
    """
    sample = tl.program_id(0).to(tl.int64)
    row = tl.load(row_ptr + sample)
    top_k, top_p = parameter(parameter_ptr, row, TOP_K).to(tl.int64), parameter(parameter_ptr, row, TOP_P)
    edge, num_ties = tl.full([], NOWHERE, tl.int64), tl.zeros([], tl.int64)
    is_sound = (tl.abs(row_best(best_ptr, sample, PARTS, BLOCK_P)) < float("inf")) & (
        parameter(parameter_ptr, row, TEMPERATURE) >= GREEDY_BELOW
    )
    if not BY_WEIGHT:
        if is_sound & (top_k < V):
            edge, num_ties = reached(last_sum_ptr, last_state_ptr, top_p, sample, PASSES, BY_WEIGHT, PARTS, BLOCK_P)
    else:
        if HAS_TOP_K:
            edge, num_ties = tl.load(edge_ptr + sample * 2), tl.load(edge_ptr + sample * 2 + 1)
        if HAS_TOP_P:  # noqa: SIM102
            if is_sound & (top_p < 1):
                edge, goal = reached(last_sum_ptr, last_state_ptr, top_p, sample, PASSES, BY_WEIGHT, PARTS, BLOCK_P)
                weight = tl.maximum(weights(edge.to(tl.int32)), 1)
                num_ties = (goal + weight - 1) // weight
        min_p = parameter(parameter_ptr, row, MIN_P).to(tl.float32)
        if min_p > 0:
            limit = tl.abs(tl.log(min_p)).to(tl.int32, bitcast=True).to(tl.int64)
            if limit < edge:  # all that lie just there are kept
                edge, num_ties = limit + 1, tl.zeros([], tl.int64)
    tl.store(final_ptr + sample * 2, edge)
    tl.store(final_ptr + sample * 2 + 1, num_ties)


@triton.jit(do_not_specialize_on_alignment=["row_ptr"])
def mass_kernel(
    logit_ptr, best_ptr, row_ptr, parameter_ptr, final_ptr, mass_ptr, row_stride, column_stride,
    V: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, PART: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """What one part holds: the weight of tokens nearer than the edge, and tokens that lie just there. Grid: (samples, parts)."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(row_ptr + sample)
    best, temperature = row_best(best_ptr, sample, PARTS, BLOCK_P), parameter(parameter_ptr, row, TEMPERATURE)
    if (tl.abs(best) < float("inf")) & (temperature >= GREEDY_BELOW):
        edge, n_N = tl.load(final_ptr + sample * 2), tl.arange(0, LANES)
        mass_N, ties_N = tl.zeros([LANES], tl.int64), tl.zeros([LANES], tl.int64)
        for first in range(part * PART, tl.minimum(part * PART + PART, V), LANES):
            id_N = first + n_N
            bits_N = distances(logit_ptr + sample * row_stride, id_N, id_N < V, column_stride, best, temperature.to(tl.float32))
            mass_N += tl.where(bits_N < edge, weights(bits_N), 0)
            ties_N += ((bits_N == edge) & (id_N < V)).to(tl.int64)
        tl.store(mass_ptr + (sample * PARTS + part) * 2, tl.sum(mass_N, axis=0))
        tl.store(mass_ptr + (sample * PARTS + part) * 2 + 1, tl.sum(ties_N, axis=0))


@triton.jit(do_not_specialize_on_alignment=["row_ptr", "position_ptr"])
def draw_kernel(
    logit_ptr, best_ptr, id_ptr, row_ptr, position_ptr, seed_ptr, parameter_ptr, final_ptr, mass_ptr, out_ptr,
    row_stride, column_stride,
    IS_RANDOM: tl.constexpr, V: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, PART: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One sample's token: the first one up to which there is more than the random number's share of the weight."""
    sample = tl.program_id(0).to(tl.int64)
    row, best = tl.load(row_ptr + sample), row_best(best_ptr, sample, PARTS, BLOCK_P)
    p_P, n_N = tl.arange(0, BLOCK_P), tl.arange(0, LANES)
    best_P = tl.load(best_ptr + sample * PARTS + p_P, mask=p_P < PARTS, other=-float("inf"))
    id_P = tl.load(id_ptr + sample * PARTS + p_P, mask=p_P < PARTS, other=V)
    drawn = tl.min(tl.where(best_P == best, id_P, V), axis=0)
    is_finite = tl.abs(best) < float("inf")
    if IS_RANDOM:
        temperature = parameter(parameter_ptr, row, TEMPERATURE)
        if is_finite & (temperature >= GREEDY_BELOW):
            edge, num_kept = tl.load(final_ptr + sample * 2), tl.load(final_ptr + sample * 2 + 1)
            mass_P = tl.load(mass_ptr + (sample * PARTS + p_P) * 2, mask=p_P < PARTS, other=0)
            ties_P = tl.load(mass_ptr + (sample * PARTS + p_P) * 2 + 1, mask=p_P < PARTS, other=0)
            left_P = tl.maximum(num_kept - (tl.cumsum(ties_P, axis=0) - ties_P), 0)
            mass_P += tl.minimum(left_P, ties_P) * weights(edge.to(tl.int32))
            seed, position = tl.load(seed_ptr + row).to(tl.uint64), tl.load(position_ptr + sample).to(tl.uint64)
            number = mixed(mixed(seed) + (position + 1) * GAMMA) >> 11 << 11
            goal = tl.umulhi(number, tl.sum(mass_P, axis=0).to(tl.uint64)).to(tl.int64)
            part = tl.sum((tl.cumsum(mass_P, axis=0) <= goal).to(tl.int32), axis=0)
            mass = tl.sum(tl.where(p_P < part, mass_P, 0), axis=0)
            ties = tl.sum(tl.where(p_P < part, ties_P, 0), axis=0)
            drawn_N = tl.full([LANES], V, tl.int32)
            for first in range(part * PART, tl.minimum(part * PART + PART, V), LANES):
                id_N = first + n_N
                bits_N = distances(
                    logit_ptr + sample * row_stride, id_N, id_N < V, column_stride, best, temperature.to(tl.float32)
                )
                tie_N = ((bits_N == edge) & (id_N < V)).to(tl.int64)
                is_kept_N = (bits_N < edge) | ((tie_N > 0) & (ties + tl.cumsum(tie_N, axis=0) <= num_kept))
                weight_N = tl.where(is_kept_N, weights(bits_N), 0)
                is_past_N = (mass + tl.cumsum(weight_N, axis=0) > goal) & (id_N < V)
                drawn_N = tl.minimum(drawn_N, tl.where(is_past_N, id_N, V))
                mass += tl.sum(weight_N, axis=0)
                ties += tl.sum(tie_N, axis=0)
            drawn = tl.minimum(tl.min(drawn_N, axis=0), V - 1)  # where nothing is kept
    tl.store(out_ptr + sample, tl.where(is_finite, drawn, -1).to(tl.int64))


@triton.jit(do_not_specialize_on_alignment=["row_ptr"])
def penalize_kernel(
    logit_ptr, row_ptr, parameter_ptr, output_ptr, prompt_ptr, row_stride, column_stride, V: tl.constexpr, BLOCK: tl.constexpr
):
    """A part of one row's logits. Grid: (samples, parts)."""
    sample, id_N = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_ptr + sample)
    repetition = parameter(parameter_ptr, row, REPETITION).to(tl.float32)
    presence = parameter(parameter_ptr, row, PRESENCE).to(tl.float32)
    frequency = parameter(parameter_ptr, row, FREQUENCY).to(tl.float32)
    if (repetition != 1) | (presence != 0) | (frequency != 0):
        mask_N = id_N < V
        place_N = logit_ptr + sample * row_stride + id_N * column_stride
        logit_N = tl.load(place_N, mask=mask_N, other=0)
        count_N = tl.load(output_ptr + row * V + id_N, mask=mask_N, other=0)
        is_prompt_N = tl.load(prompt_ptr + row * V + id_N, mask=mask_N, other=0) != 0
        factor_N = tl.where(
            logit_N > 0, tl.div_rn(tl.full([BLOCK], 1, tl.float32), tl.zeros_like(logit_N) + repetition), repetition
        )
        logit_N = tl.where((count_N > 0) | is_prompt_N, logit_N * factor_N, logit_N)
        logit_N = logit_N - count_N.to(tl.float32) * frequency - tl.where(count_N > 0, presence, 0.0)
        tl.store(place_N, logit_N, mask=mask_N)


@triton.jit(do_not_specialize_on_alignment=["row_ptr", "position_ptr"])
def adjust_kernel(
    logit_ptr, row_ptr, position_ptr, len_ptr, id_ptr, value_ptr, until_ptr, row_stride, column_stride, width, BLOCK: tl.constexpr
):
    """One sample's bias and bans, BLOCK at a time."""
    sample = tl.program_id(0).to(tl.int64)
    row, position = tl.load(row_ptr + sample), tl.load(position_ptr + sample)
    num_adjusted = tl.load(len_ptr + row)
    for first in range(0, num_adjusted, BLOCK):
        place_N = first + tl.arange(0, BLOCK)
        mask_N = place_N < num_adjusted
        id_N = tl.load(id_ptr + row * width + place_N, mask=mask_N, other=0)
        value_N = tl.load(value_ptr + row * width + place_N, mask=mask_N, other=0)
        until_N = tl.load(until_ptr + row * width + place_N, mask=mask_N, other=0)
        logit_N = logit_ptr + sample * row_stride + id_N * column_stride
        added_N = tl.where(position < until_N, -float("inf"), value_N)
        tl.store(logit_N, tl.load(logit_N, mask=mask_N, other=0) + added_N, mask=mask_N)


@triton.jit(do_not_specialize=["num_samples"], do_not_specialize_on_alignment=["row_ptr"])
def count_kernel(id_ptr, row_ptr, output_ptr, num_samples, V: tl.constexpr, BLOCK: tl.constexpr):
    """One more of each sampled token; two samples of a row may have the same."""
    place_N = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    id_N = tl.load(id_ptr + place_N, mask=place_N < num_samples, other=-1)
    row_N = tl.load(row_ptr + place_N, mask=id_N >= 0, other=0)
    tl.atomic_add(output_ptr + row_N * V + id_N, 1, mask=id_N >= 0, sem="relaxed")
