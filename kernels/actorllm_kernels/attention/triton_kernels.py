"""The Triton code of attention over token slots: one loop over keys, used by decode in parts of the key axis and by prefill.

Scores, sums and the softmax are in float32, exponents to base 2. Lengths are read from the device's memory, so a grid
depends on the number of rows and tokens alone. Online softmax after FlashAttention (arXiv 2205.14135), parts of the key
axis and their merge after Flash-Decoding. Knows pointers and strides; `triton` launches it.

Legend: B rows of the batch, M rows of a tile (queries times heads of one key/value head), N keys of a tile, D head_dim in
two parts (D1 + D2, each a power of two), E head_dim of values.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
# (Triton is there only where torch is made for GPUs, and its functions are not Python: any number is a constexpr.)
import triton
import triton.language as tl

from actorllm_kernels.triton_forms import FP8, FP8_SHIFT, INT8, PLAIN, decoded

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
INT8_LIFT: tl.constexpr = tl.constexpr(64.0)
"""What sums of int8 values are too large by: shares times factors, a 127th of the values' size, would lose digits in float16."""


@triton.jit
def stepped(index, stride, STEP: tl.constexpr):
    """`index * stride`, a multiple of STEP as the stride is: Triton itself looks for multiples of 16 alone, and would load rows
    that lie apart otherwise value by value."""
    return tl.multiple_of(index * stride, STEP)


@triton.jit
def load_part(ptr, offset_M, is_row_M, SIZE: tl.constexpr, START: tl.constexpr, BLOCK: tl.constexpr):
    """[M, BLOCK]: values START .. START + BLOCK of the rows of SIZE values at `offset_M`; zeros where there is none."""
    column = START + tl.arange(0, BLOCK)
    mask = is_row_M[:, None]
    if START + BLOCK > SIZE:
        mask = mask & (column < SIZE)[None, :]
    return tl.load(ptr + offset_M[:, None] + column[None, :], mask=mask, other=0)


@triton.jit
def load_scales(ptr, row_N, is_key_N, stride, kv_head, FORM: tl.constexpr):
    """[N] the factors of a quantized pool's tokens for one head."""
    scales_N = tl.load(ptr + row_N * stride + kv_head, mask=is_key_N, other=0).to(tl.float32)
    return scales_N * FP8_SHIFT if FORM == FP8 else scales_N


@triton.jit
def capped(scores, cap):
    """`cap * tanh(scores / cap)`, by exponents that cannot overflow to NaN."""
    return cap - 2 * cap / (tl.exp2(scores * (2 * LOG2_E / cap)) + 1)


@triton.jit
def attend_keys(
    acc_ME, max_M, sum_M, q1, q2, position_M, slope_M, begin, end,
    k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, slot_ptr, k_stride, v_stride, scale_stride, kv_head, scale, cap, window,
    HAS_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_WINDOW: tl.constexpr, IS_MASKED: tl.constexpr,
    FORM: tl.constexpr, V_IN_K: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    E: tl.constexpr, E_BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, DTYPE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Go on with a softmax (mixture, largest score and sum of exponents so far) over the keys `begin .. end - 1` of one row.

    Without IS_MASKED every query sees all of them and they fill whole tiles.
    """
    for first in range(begin, end, BLOCK_N):
        key_N = first + tl.arange(0, BLOCK_N)
        is_key_N = key_N < end
        row_N = tl.load(slot_ptr + key_N, mask=is_key_N, other=0).to(tl.int64)
        k1 = decoded(load_part(k_ptr, stepped(row_N, k_stride, STEP), is_key_N, D, 0, D1), FORM, DTYPE)
        scores_MN = tl.dot(q1, tl.trans(k1), input_precision="ieee")
        HAS_PARTS: tl.constexpr = V_IN_K and FORM != PLAIN  # a latent and a rotated key, with a factor each
        if HAS_PARTS:
            scores_MN *= load_scales(k_scale_ptr, row_N, is_key_N, scale_stride, 0, FORM)[None, :]
        if D2 > 0:
            k2 = decoded(load_part(k_ptr, stepped(row_N, k_stride, STEP), is_key_N, D, D1, D2), FORM, DTYPE)
            if HAS_PARTS:
                more_MN = tl.dot(q2, tl.trans(k2), input_precision="ieee")
                scores_MN += more_MN * load_scales(k_scale_ptr, row_N, is_key_N, scale_stride, 1, FORM)[None, :]
            else:
                scores_MN = tl.dot(q2, tl.trans(k2), scores_MN, input_precision="ieee")
        if FORM != PLAIN and not HAS_PARTS:
            scores_MN *= load_scales(k_scale_ptr, row_N, is_key_N, scale_stride, kv_head, FORM)[None, :]
        if HAS_CAP or HAS_SLOPES:
            scores_MN *= scale
            if HAS_CAP:
                scores_MN = capped(scores_MN, cap)
            if HAS_SLOPES:
                scores_MN += slope_M[:, None] * (key_N[None, :] - position_M[:, None]).to(tl.float32)
            scores_MN *= LOG2_E
        else:
            scores_MN *= scale * LOG2_E
        if IS_MASKED:
            seen_MN = is_key_N[None, :] & (key_N[None, :] <= position_M[:, None])
            if HAS_WINDOW:
                seen_MN = seen_MN & (key_N[None, :] > position_M[:, None] - window)
            scores_MN = tl.where(seen_MN, scores_MN, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(scores_MN, axis=1))
        base_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)  # a query that has seen no key yet
        share_MN = tl.exp2(scores_MN - base_M[:, None])
        shrink_M = tl.exp2(max_M - base_M)
        sum_M = sum_M * shrink_M + tl.sum(share_MN, axis=1)
        max_M = new_max_M
        v = k1 if V_IN_K else decoded(load_part(v_ptr, stepped(row_N, v_stride, STEP), is_key_N, E, 0, E_BLOCK), FORM, DTYPE)
        if FORM != PLAIN:
            factor_N = load_scales(v_scale_ptr, row_N, is_key_N, scale_stride, kv_head, FORM)
            share_MN *= (factor_N * INT8_LIFT if FORM == INT8 else factor_N)[None, :]
        acc_ME = tl.dot(share_MN.to(DTYPE), v, acc_ME * shrink_M[:, None], input_precision="ieee")
    return acc_ME, max_M, sum_M


@triton.jit
def with_sink(acc_ME, max_M, sum_M, sink_ptr, head_M, is_row_M, HAS_SINKS: tl.constexpr, FORM: tl.constexpr):
    """[M, E] the finished mixture: the head's sink takes its share of the sum; a query without keys gives zeros."""
    if HAS_SINKS:
        sink_M = tl.load(sink_ptr + head_M, mask=is_row_M, other=0).to(tl.float32) * LOG2_E
        new_max_M = tl.maximum(max_M, sink_M)
        shrink_M = tl.exp2(max_M - new_max_M)
        acc_ME = acc_ME * shrink_M[:, None]
        sum_M = sum_M * shrink_M + tl.exp2(sink_M - new_max_M)
    if FORM == INT8:
        sum_M *= INT8_LIFT
    return acc_ME / tl.where(sum_M == 0, 1.0, sum_M)[:, None]


@triton.jit
def first_key(seq_len, query_len, window, HAS_WINDOW: tl.constexpr):
    """The first key that the row's first query sees."""
    return tl.maximum(seq_len - query_len - window + 1, 0) if HAS_WINDOW else seq_len * 0


@triton.jit
def keys_per_part(num_keys, PARTS: tl.constexpr, BLOCK_N: tl.constexpr):
    """How many keys each part of a decode row has, in whole tiles; the last parts of a short row have none."""
    return tl.maximum(tl.cdiv(tl.cdiv(num_keys, PARTS), BLOCK_N), 1) * BLOCK_N


@triton.jit(do_not_specialize=["num_heads", "window"], do_not_specialize_on_alignment=["span_ptr"])
def decode_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, part_ptr, log_ptr, span_ptr, table_ptr, k_scale_ptr, v_scale_ptr, sink_ptr, slope_ptr,
    q_stride_t, q_stride_h, k_stride, k_stride_h, v_stride, v_stride_h, out_stride_t, table_stride, scale_stride,
    scale, cap, window, num_heads,
    GROUP: tl.constexpr, HAS_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_WINDOW: tl.constexpr,
    FORM: tl.constexpr, V_IN_K: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, E: tl.constexpr,
    E_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr, DTYPE: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """One row's only query over one part of its keys. Grid: (rows, tiles of query heads, parts). Rows of other lengths are
    `prefill_kernel`'s."""
    entry_ptr = span_ptr + tl.program_id(0) * 4
    token, query_len, seq_len = tl.load(entry_ptr + 1).to(tl.int64), tl.load(entry_ptr + 2), tl.load(entry_ptr + 3)
    if query_len != 1:
        return
    begin = first_key(seq_len, 1, window, HAS_WINDOW)
    part = tl.program_id(2)
    size = keys_per_part(seq_len - begin, PARTS, BLOCK_N)
    begin += part * size
    if (begin >= seq_len) & (part > 0):
        return
    tiles: tl.constexpr = (GROUP + BLOCK_M - 1) // BLOCK_M
    kv_head, m_M = tl.program_id(1) // tiles, tl.program_id(1) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    head_M, is_row_M = kv_head * GROUP + m_M, m_M < GROUP
    offset_M = token * q_stride_t + head_M * q_stride_h
    q1 = load_part(q_ptr, offset_M, is_row_M, D, 0, D1).to(DTYPE)
    q2 = load_part(q_ptr, offset_M, is_row_M, D, D1, D2).to(DTYPE) if D2 > 0 else q1
    slope_M = tl.load(slope_ptr + head_M, mask=is_row_M, other=0) if HAS_SLOPES else is_row_M
    acc_ME, max_M, sum_M = attend_keys(
        tl.zeros([BLOCK_M, E_BLOCK], tl.float32), tl.full([BLOCK_M], float("-inf"), tl.float32), tl.zeros([BLOCK_M], tl.float32),
        q1, q2, tl.full([BLOCK_M], 0, tl.int32) + seq_len - 1, slope_M, begin, tl.minimum(begin + size, seq_len),
        k_ptr + stepped(kv_head.to(tl.int64), k_stride_h, STEP), v_ptr + stepped(kv_head.to(tl.int64), v_stride_h, STEP), k_scale_ptr, v_scale_ptr,
        table_ptr + tl.load(entry_ptr).to(tl.int64) * table_stride, k_stride, v_stride, scale_stride, kv_head, scale, cap, window,
        HAS_CAP, HAS_SLOPES, HAS_WINDOW, True, FORM, V_IN_K, D, D1, D2, E, E_BLOCK, BLOCK_N, DTYPE, STEP,
    )  # fmt: skip
    column = tl.arange(0, E_BLOCK)
    mask_ME = is_row_M[:, None] & (column < E)[None, :]
    if PARTS == 1:
        acc_ME = with_sink(acc_ME, max_M, sum_M, sink_ptr, head_M, is_row_M, HAS_SINKS, FORM)
        tl.store(out_ptr + token * out_stride_t + head_M[:, None] * E + column[None, :], acc_ME, mask=mask_ME)
    else:
        index_M = (tl.program_id(0).to(tl.int64) * num_heads + head_M) * PARTS + part
        acc_ME = with_sink(acc_ME, max_M, sum_M, sink_ptr, head_M, is_row_M, False, FORM)
        tl.store(part_ptr + index_M[:, None] * E + column[None, :], acc_ME, mask=mask_ME)
        tl.store(log_ptr + index_M, max_M + tl.log2(sum_M), mask=is_row_M)


@triton.jit(do_not_specialize=["num_heads", "window"], do_not_specialize_on_alignment=["span_ptr"])
def merge_kernel(
    part_ptr, log_ptr, out_ptr, span_ptr, sink_ptr, out_stride_t, num_heads, window,
    HAS_SINKS: tl.constexpr, HAS_WINDOW: tl.constexpr, E: tl.constexpr, E_BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Join the parts of one head of one decode row: each counts by the sum of its exponents. Grid: (rows, heads)."""
    row, head = tl.program_id(0), tl.program_id(1)
    token, query_len = tl.load(span_ptr + row * 4 + 1).to(tl.int64), tl.load(span_ptr + row * 4 + 2)
    seq_len = tl.load(span_ptr + row * 4 + 3)
    if query_len != 1:
        return
    num_keys = seq_len - first_key(seq_len, 1, window, HAS_WINDOW)
    num_parts = tl.maximum(tl.cdiv(num_keys, keys_per_part(num_keys, PARTS, BLOCK_N)), 1)
    column, index = tl.arange(0, E_BLOCK), (row.to(tl.int64) * num_heads + head) * PARTS
    acc_E, best, total = tl.zeros([E_BLOCK], tl.float32), float("-inf"), 0.0
    if HAS_SINKS:
        best, total = tl.load(sink_ptr + head).to(tl.float32) * LOG2_E, 1.0
    for part in range(0, num_parts):
        log = tl.load(log_ptr + index + part)
        new_best = tl.maximum(best, log)
        safe = tl.where(new_best == float("-inf"), 0.0, new_best)
        weight, shrink = tl.exp2(log - safe), tl.exp2(best - safe)
        part_E = tl.load(part_ptr + (index + part) * E + column, mask=column < E, other=0)
        acc_E = acc_E * shrink + part_E * weight
        best, total = new_best, total * shrink + weight
    acc_E /= tl.where(total == 0, 1.0, total)
    tl.store(out_ptr + token * out_stride_t + head * E + column, acc_E, mask=column < E)


@triton.jit
def find_tile(span_ptr, num_rows, tile, BLOCK_Q: tl.constexpr, BLOCK_B: tl.constexpr):
    """(row, its tile) of the `tile`-th tile of BLOCK_Q queries of the batch; the row is `num_rows` or more behind the last one.

    A row's last tile comes first: it sees the most keys, and should not be what all wait for in the end. Rows of one query have
    no tile: they are `decode_kernel`'s.
    """
    row_B = tl.arange(0, BLOCK_B)
    len_B = tl.load(span_ptr + row_B * 4 + 2, mask=row_B < num_rows, other=0)
    tiles_B = tl.where(len_B > 1, tl.cdiv(len_B, BLOCK_Q), 0)
    ends_B = tl.cumsum(tiles_B, 0)
    row = tl.sum(tl.where(ends_B <= tile, 1, 0), 0)
    return row, -1 - tile + tl.sum(tl.where(row_B <= row, tiles_B, 0), 0)


@triton.jit(do_not_specialize=["num_rows", "window"], do_not_specialize_on_alignment=["span_ptr"])
def prefill_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, span_ptr, table_ptr, k_scale_ptr, v_scale_ptr, sink_ptr, slope_ptr,
    q_stride_t, q_stride_h, k_stride, k_stride_h, v_stride, v_stride_h, out_stride_t, table_stride, scale_stride,
    scale, cap, window, num_rows,
    GROUP: tl.constexpr, HAS_CAP: tl.constexpr, HAS_SLOPES: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_WINDOW: tl.constexpr,
    FORM: tl.constexpr, V_IN_K: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, E: tl.constexpr,
    E_BLOCK: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
    DTYPE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """BLOCK_Q queries of one chunk with BLOCK_H heads of one key/value head, over all their keys. Grid: (tiles of queries as
    many as there can be, tiles of query heads)."""
    row, tile = find_tile(span_ptr, num_rows, tl.program_id(0), BLOCK_Q, BLOCK_B)
    if row >= num_rows:
        return
    entry_ptr = span_ptr + row * 4
    start, query_len, seq_len = tl.load(entry_ptr + 1), tl.load(entry_ptr + 2), tl.load(entry_ptr + 3)
    m_M = tl.arange(0, BLOCK_Q * BLOCK_H)
    query_M = tile * BLOCK_Q + m_M // BLOCK_H
    tiles: tl.constexpr = (GROUP + BLOCK_H - 1) // BLOCK_H
    kv_head, member_M = tl.program_id(1) // tiles, tl.program_id(1) % tiles * BLOCK_H + m_M % BLOCK_H
    head_M, is_row_M = kv_head * GROUP + member_M, (member_M < GROUP) & (query_M < query_len)
    token_M = (start + query_M).to(tl.int64)
    offset_M = token_M * q_stride_t + head_M * q_stride_h
    q1 = load_part(q_ptr, offset_M, is_row_M, D, 0, D1).to(DTYPE)
    q2 = load_part(q_ptr, offset_M, is_row_M, D, D1, D2).to(DTYPE) if D2 > 0 else q1
    slope_M = tl.load(slope_ptr + head_M, mask=is_row_M, other=0) if HAS_SLOPES else is_row_M
    position_M = seq_len - query_len + query_M
    first_position = seq_len - query_len + tile * BLOCK_Q
    end = tl.minimum(first_position + BLOCK_Q, seq_len)
    begin = first_key(first_position + 1, 1, window, HAS_WINDOW)
    acc_ME, max_M = tl.zeros([BLOCK_Q * BLOCK_H, E_BLOCK], tl.float32), tl.full([BLOCK_Q * BLOCK_H], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_Q * BLOCK_H], tl.float32)
    k_ptr += stepped(kv_head.to(tl.int64), k_stride_h, STEP)
    v_ptr += stepped(kv_head.to(tl.int64), v_stride_h, STEP)
    table_ptr += tl.load(entry_ptr).to(tl.int64) * table_stride
    if not HAS_WINDOW:  # the keys that every query of the tile sees need no mask
        whole = (first_position + 1) // BLOCK_N * BLOCK_N
        acc_ME, max_M, sum_M = attend_keys(
            acc_ME, max_M, sum_M, q1, q2, position_M, slope_M, begin, whole, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr,
            k_stride, v_stride, scale_stride, kv_head, scale, cap, window,
            HAS_CAP, HAS_SLOPES, False, False, FORM, V_IN_K, D, D1, D2, E, E_BLOCK, BLOCK_N, DTYPE, STEP,
        )  # fmt: skip
        begin = whole
    acc_ME, max_M, sum_M = attend_keys(
        acc_ME, max_M, sum_M, q1, q2, position_M, slope_M, begin, end, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr,
        k_stride, v_stride, scale_stride, kv_head, scale, cap, window,
        HAS_CAP, HAS_SLOPES, HAS_WINDOW, True, FORM, V_IN_K, D, D1, D2, E, E_BLOCK, BLOCK_N, DTYPE, STEP,
    )  # fmt: skip
    acc_ME = with_sink(acc_ME, max_M, sum_M, sink_ptr, head_M, is_row_M, HAS_SINKS, FORM)
    column = tl.arange(0, E_BLOCK)
    mask_ME = is_row_M[:, None] & (column < E)[None, :]
    tl.store(out_ptr + token_M[:, None] * out_stride_t + head_M[:, None] * E + column[None, :], acc_ME, mask=mask_ME)
