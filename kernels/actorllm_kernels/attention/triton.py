"""Attention by the Triton kernels: for GPUs, and for any tensors under Triton's interpreter.

Decode rows (one query) go over their keys in parallel parts whose results are merged; the chunks of prefill go in tiles of
queries. Both are launched over the whole batch and each leaves the other's rows alone. What is launched depends on the
number of rows and tokens, the table's width and the shapes, on no length; nothing waits for the GPU.

A call takes memory for its result from torch's caching allocator, as every operator of torch does, and decode in several parts
for what they hand on to the merge. While a graph is captured it comes from that graph's own pool: a replay allocates nothing.
`launches` instead write their result into memory that the caller owns; what parts hand on they keep themselves, as long as they
live. They read lengths when they run: made once, they serve every step of as many rows, one after the other.

Legend: T tokens of the batch, B its rows, H query heads, K key/value heads, D head_dim, E head_dim of values, N slots.
"""

import functools
import math
from dataclasses import dataclass

import torch
import triton  # pyright: ignore[reportMissingImports]
from torch import Tensor

from actorllm_kernels.attention import triton_kernels as kernels
from actorllm_kernels.attention.keys import RaggedKeys
from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for, num_programs_that_fill
from actorllm_kernels.launch import (
    ALIGNMENT,
    INTERPRETED,
    LANGUAGE_TYPES,
    LEAST_SIDE,
    Launch,
    dense_rows,
    product_type,
    require_dense,
    require_dense_rows,
)
from actorllm_kernels.triton_forms import FORMS, PLAIN

MOST_PARTS = 64
TILES_PER_PART = 4
"""A part of fewer tiles of keys would cost more to merge than it saves."""


@dataclass(frozen=True)
class Scores:
    """How scores are made of products, see `reference.attend`."""

    scale: float
    soft_cap: float | None = None
    sinks_H: Tensor | None = None
    slopes_H: Tensor | None = None


@dataclass(frozen=True)
class Pools:
    """A layer's keys and values; of int8 or float8_e4m3fn they have a factor for each token and head.

    Keys that begin with their values (latents: `values_begin_keys`) have two then, [N, 1, 2]: for the values and for the rest.
    """

    k_NKD: Tensor
    v_NKE: Tensor
    k_scales_NK: Tensor | None = None
    v_scales_NK: Tensor | None = None

    @functools.cached_property
    def values_begin_keys(self) -> bool:
        """Whether values are the first numbers of the only head's keys, in the same memory (latents): they are read once then."""
        k_N1E = self.k_NKD[..., : self.v_NKE.shape[2]]
        is_same_view = k_N1E.shape == self.v_NKE.shape and k_N1E.stride() == self.v_NKE.stride()
        return self.k_NKD.shape[1] == 1 and is_same_view and k_N1E.data_ptr() == self.v_NKE.data_ptr()


def suits(q_THD: Tensor, k_NKD: Tensor, v_NKE: Tensor) -> bool:
    """Whether the kernels can compute this."""
    if not (q_THD.is_cuda or INTERPRETED) or q_THD.dtype not in LANGUAGE_TYPES or k_NKD.dtype != v_NKE.dtype:
        return False
    is_quantized = k_NKD.dtype in FORMS
    if is_quantized and Pools(k_NKD, v_NKE).values_begin_keys and v_NKE.shape[2] != split_size(q_THD.shape[2])[0]:
        return False  # a key's two factors must meet the two parts that it is read in
    return (k_NKD.dtype == q_THD.dtype or is_quantized) and k_NKD.stride(2) == 1 and v_NKE.stride(2) == 1


def attend(
    q_THD: Tensor,
    k_NKD: Tensor,
    v_NKE: Tensor,
    keys: RaggedKeys,
    *,
    scale: float,
    soft_cap: float | None = None,
    sinks_H: Tensor | None = None,
    slopes_H: Tensor | None = None,
    k_scales_NK: Tensor | None = None,
    v_scales_NK: Tensor | None = None,
) -> Tensor:
    """[T, H, E] in q's dtype; scores and sums in float32."""
    q = dense_rows(q_THD)
    out_THE = torch.empty(*q.shape[:2], v_NKE.shape[2], dtype=q.dtype, device=q.device)
    scores = Scores(scale, soft_cap, sinks_H, slopes_H)
    for launch in launches(q, Pools(k_NKD, v_NKE, k_scales_NK, v_scales_NK), keys, scores=scores, out_THE=out_THE):
        launch.run()
    return out_THE


def launches(q_THD: Tensor, pools: Pools, keys: RaggedKeys, *, scores: Scores, out_THE: Tensor) -> list[Launch]:
    """The kernels to run, in order."""
    query_lens = {span.query_len for span in keys.spans}
    found = decode(q_THD, pools, keys, scores=scores, out_THE=out_THE) if 1 in query_lens else []
    if max(query_lens, default=0) > 1:
        found.append(prefill(q_THD, pools, keys, scores=scores, out_THE=out_THE))
    return found


def decode(
    q_THD: Tensor,
    pools: Pools,
    keys: RaggedKeys,
    *,
    scores: Scores,
    out_THE: Tensor,
    chosen: Configuration | None = None,
    num_parts: int | None = None,
) -> list[Launch]:
    """The launches for the rows of one query, cut as `chosen` or known to be good; `num_parts` of keys, or what fills the GPU."""
    shape = shape_of(q_THD, pools)
    chosen = chosen or chosen_for("attend_decode", shape, q_THD.device)
    num_rows, num_heads, group, size = len(keys.spans), q_THD.shape[1], shape["group"], pools.v_NKE.shape[2]
    block_m, num_tiles = tiles_of(group, pools.k_NKD.shape[1], chosen)
    if num_parts is None:
        most_keys = min(keys.slot_table.shape[1], keys.window or keys.slot_table.shape[1])
        num_parts = parts_of(q_THD, pools, num_rows=num_rows, most_keys=most_keys, chosen=chosen)
    part, log = None, None
    if num_parts > 1:
        part = torch.empty(num_rows, num_heads, num_parts, size, dtype=torch.float32, device=q_THD.device)
        log = torch.empty(num_rows, num_heads, num_parts, dtype=torch.float32, device=q_THD.device)
    given, constants = (
        _arguments(q_THD, pools, keys, scores=scores, out_THE=out_THE),
        _constants(q_THD, pools, keys, scores=scores),
    )
    found = [
        Launch(
            kernels.decode_kernel,
            (num_rows, num_tiles, num_parts),
            given | {"part_ptr": part, "log_ptr": log, "num_heads": num_heads},
            constants | {"BLOCK_M": block_m, "BLOCK_N": chosen.block("n"), "PARTS": num_parts},
            chosen,
        )
    ]
    if num_parts > 1:
        names = ("out_ptr", "span_ptr", "sink_ptr", "out_stride_t", "window")
        used = {name: constants[name] for name in ("HAS_SINKS", "HAS_WINDOW", "E", "E_BLOCK")}
        arguments = {name: given[name] for name in names} | {"part_ptr": part, "log_ptr": log, "num_heads": num_heads}
        sizes = {"BLOCK_N": chosen.block("n"), "PARTS": num_parts}
        found.append(Launch(kernels.merge_kernel, (num_rows, num_heads), arguments, used | sizes))
    return found


def tiles_of(group: int, num_kv_heads: int, chosen: Configuration) -> tuple[int, int]:
    """How many query heads a tile of decode has, and how many tiles a row has."""
    block_m = min(max(triton.next_power_of_2(group), LEAST_SIDE), chosen.block("m"))
    return block_m, num_kv_heads * triton.cdiv(group, block_m)


def parts_of(q_THD: Tensor, pools: Pools, *, num_rows: int, most_keys: int, chosen: Configuration | None = None) -> int:
    """Into how many parts, a power of two, the keys of `num_rows` decode rows of at most `most_keys` are cut to fill the GPU.

    Rather too many than too few: rows have fewer keys than they may have, and parts without keys end at once.
    """
    shape = shape_of(q_THD, pools)
    chosen = chosen or chosen_for("attend_decode", shape, q_THD.device)
    num_programs = num_rows * tiles_of(shape["group"], pools.k_NKD.shape[1], chosen)[1]
    free = triton.next_power_of_2(triton.cdiv(num_programs_that_fill(q_THD.device), num_programs))
    return min(free, triton.next_power_of_2(triton.cdiv(most_keys, chosen.block("n") * TILES_PER_PART)), MOST_PARTS)


def prefill(
    q_THD: Tensor, pools: Pools, keys: RaggedKeys, *, scores: Scores, out_THE: Tensor, chosen: Configuration | None = None
) -> Launch:
    """The launch for the rows of several queries, cut as `chosen` or known to be good."""
    shape = shape_of(q_THD, pools)
    chosen = chosen or chosen_for("attend_prefill", shape, q_THD.device)
    num_rows, num_tokens = len(keys.spans), len(q_THD)
    block_h = min(triton.next_power_of_2(shape["group"]), chosen.block("m"))
    block_q = chosen.block("m") // block_h
    num_tiles = triton.cdiv(num_tokens, block_q) + num_rows  # the most there can be: each row may end in a broken tile
    constants = {
        "BLOCK_H": block_h,
        "BLOCK_Q": block_q,
        "BLOCK_N": chosen.block("n"),
        "BLOCK_B": triton.next_power_of_2(max(num_rows, len(keys.slot_table))),  # the table is as long in every step
    }
    return Launch(
        kernels.prefill_kernel,
        (num_tiles, pools.k_NKD.shape[1] * triton.cdiv(shape["group"], block_h)),
        _arguments(q_THD, pools, keys, scores=scores, out_THE=out_THE) | {"num_rows": num_rows},
        _constants(q_THD, pools, keys, scores=scores) | constants,
        chosen,
    )


def shape_of(q_THD: Tensor, pools: Pools) -> dict[str, int]:
    """What configurations are chosen by."""
    return {"bytes": pools.k_NKD.element_size(), "group": q_THD.shape[1] // pools.k_NKD.shape[1], "head_dim": q_THD.shape[2]}


def _arguments(q_THD: Tensor, pools: Pools, keys: RaggedKeys, *, scores: Scores, out_THE: Tensor) -> dict[str, object]:
    k, v = (pool.view(torch.uint8) if pool.dtype == torch.float8_e4m3fn else pool for pool in (pools.k_NKD, pools.v_NKE))
    require_dense(spans_B4=keys.spans_B4, sinks_H=scores.sinks_H, slopes_H=scores.slopes_H)
    require_dense_rows(slot_table=keys.slot_table)
    k_scales, v_scales = pools.k_scales_NK, pools.k_scales_NK if pools.values_begin_keys else pools.v_scales_NK
    if k.dtype != q_THD.dtype:
        if k_scales is None or v_scales is None or k_scales.stride() != v_scales.stride():
            raise ValueError(f"pools of {pools.k_NKD.dtype} need factors of one layout for keys and for values")
        require_dense_rows(k_scales_NK=k_scales, v_scales_NK=v_scales)
        if pools.values_begin_keys != (k_scales.dim() == 3):
            raise ValueError("keys that begin with their values need two factors, others one")
    return {
        "q_ptr": q_THD, "k_ptr": k, "v_ptr": v, "out_ptr": out_THE, "span_ptr": keys.spans_B4, "table_ptr": keys.slot_table,
        "k_scale_ptr": k_scales, "v_scale_ptr": v_scales, "sink_ptr": scores.sinks_H, "slope_ptr": scores.slopes_H,
        "q_stride_t": q_THD.stride(0), "q_stride_h": q_THD.stride(1),
        "k_stride": k.stride(0), "k_stride_h": k.stride(1), "v_stride": v.stride(0), "v_stride_h": v.stride(1),
        "out_stride_t": out_THE.stride(0), "table_stride": keys.slot_table.stride(0),
        "scale_stride": 0 if k_scales is None else k_scales.stride(0),
        "scale": float(scores.scale), "cap": float(scores.soft_cap or 0), "window": keys.window or 0,
    }  # fmt: skip


def _constants(q_THD: Tensor, pools: Pools, keys: RaggedKeys, *, scores: Scores) -> dict[str, object]:
    head_dim, size = q_THD.shape[2], pools.v_NKE.shape[2]
    first, second = split_size(head_dim)
    return {
        "GROUP": q_THD.shape[1] // pools.k_NKD.shape[1],
        "HAS_CAP": scores.soft_cap is not None, "HAS_SLOPES": scores.slopes_H is not None,
        "HAS_SINKS": scores.sinks_H is not None, "HAS_WINDOW": keys.window is not None,
        "FORM": FORMS.get(pools.k_NKD.dtype, PLAIN).value,
        "V_IN_K": pools.values_begin_keys and size == first,
        "D": head_dim, "D1": first, "D2": second, "E": size, "E_BLOCK": max(triton.next_power_of_2(size), LEAST_SIDE),
        "DTYPE": product_type(q_THD.dtype), "STEP": step_of(pools),
    }  # fmt: skip


def step_of(pools: Pools) -> int:
    """The largest power of two, up to what wide loads need, that heads and tokens of the pools lie apart in multiples of."""
    return math.gcd(ALIGNMENT, *(pool.stride(axis) for pool in (pools.k_NKD, pools.v_NKE) for axis in (0, 1)))


def split_size(head_dim: int) -> tuple[int, int]:
    """Two powers of two (the second may be 0) that cover `head_dim` with the least beyond it: 80 = 64 + 16, 576 = 512 + 64."""
    whole = max(triton.next_power_of_2(head_dim), LEAST_SIDE)
    half = whole // 2
    rest = max(triton.next_power_of_2(head_dim - half), LEAST_SIDE) if head_dim > half >= LEAST_SIDE else whole
    return (half, rest) if half + rest < whole else (whole, 0)
