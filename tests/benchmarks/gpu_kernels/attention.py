"""Attention of large batches, beside torch's own where that computes the same."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from actorllm_kernels.attention import RaggedKeys, flat_spans
from actorllm_kernels.attention import reference as attention_reference
from actorllm_kernels.attention import triton as attention
from actorllm_kernels.configurations import Configuration
from actorllm_kernels.quantize import dequantize_parts, quantize
from gpu_kernels.problem import BF16, DEVICE, REHEARSAL, Problem, num_bytes, random

CHECKED_ROWS = 3


def attention_problem(
    lens: Sequence[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int = 128,
    *,
    form: torch.dtype = BF16,
    value_dim: int | None = None,
    window: int | None = None,
    chosen: Configuration | None = None,
) -> Problem:
    """Rows of (queries, keys) over shuffled slots."""
    if REHEARSAL:
        heads = heads[0] // 8, max(heads[1] // 8, 1)
    (num_heads, num_kv_heads), num_slots = heads, sum(seq_len for _, seq_len in lens)
    pools, exact = make_pools(num_slots, num_kv_heads, head_dim, form=form, value_dim=value_dim)
    slots = torch.randperm(num_slots, device=DEVICE).to(torch.int32)
    table = torch.zeros(len(lens), max(seq_len for _, seq_len in lens), dtype=torch.int32, device=DEVICE)
    begin = 0
    for row, (_, seq_len) in enumerate(lens):
        table[row, :seq_len] = slots[begin : begin + seq_len]
        begin += seq_len
    keys = RaggedKeys(flat_spans((row, *each) for row, each in enumerate(lens)), table, window)
    q = random(sum(query_len for query_len, _ in lens), num_heads, head_dim, seed=1)
    out = torch.full((len(q), num_heads, pools.v_NKE.shape[2]), torch.nan, dtype=BF16, device=DEVICE)
    scores = attention.Scores(head_dim**-0.5)
    if lens[0][0] == 1:
        launches = attention.decode(q, pools, keys, scores=scores, out_THE=out, chosen=chosen)
    else:
        launches = [attention.prefill(q, pools, keys, scores=scores, out_THE=out, chosen=chosen)]

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        some = RaggedKeys(keys.spans[:CHECKED_ROWS], table, window)
        num_queries = sum(span.query_len for span in some.spans)
        return out, attention_reference.attend(q[:num_queries].float(), *exact(), some, scale=scores.scale)

    seen = [min(position + 1, window or seq_len) for query_len, seq_len in lens for position in range(seq_len - query_len, seq_len)]
    size = pools.v_NKE.shape[2]
    stored = (pools.k_NKD,) if value_dim else (pools.k_NKD, pools.v_NKE, pools.v_scales_NK)
    is_dense = window is None and form == BF16 and not value_dim and len({*lens}) == 1 and lens[0][0] in (1, lens[0][1])
    return Problem(
        launches,
        results,
        num_bytes(*stored, pools.k_scales_NK, q, out),
        2 * sum(seen) * num_heads * (head_dim + size),
        partial(torch_attention, lens, heads, head_dim) if is_dense else None,
    )


def make_pools(
    num_slots: int, num_kv_heads: int, head_dim: int, *, form: torch.dtype, value_dim: int | None
) -> tuple[attention.Pools, Callable[[], tuple[torch.Tensor, torch.Tensor]]]:
    """The pools, and a function that gives keys and values in float32."""
    k = random(num_slots, num_kv_heads, head_dim, seed=2)
    if value_dim:
        return make_latents(k, form=form, size=value_dim)
    v = random(num_slots, num_kv_heads, head_dim, seed=3)
    if form == BF16:
        return attention.Pools(k, v), lambda: (k.float(), v.float())
    (k8, k_scales), (v8, v_scales) = quantize(k, form), quantize(v, form)
    pools = attention.Pools(k8, v8, k_scales, v_scales)
    return pools, lambda: (k8.float() * k_scales.unsqueeze(-1), v8.float() * v_scales.unsqueeze(-1))


def make_latents(
    latents: torch.Tensor, *, form: torch.dtype, size: int
) -> tuple[attention.Pools, Callable[[], tuple[torch.Tensor, torch.Tensor]]]:
    """The same where values are the beginning of keys; in one byte a latent and its rotated key have a factor each."""
    if form == BF16:
        return attention.Pools(latents, latents[:, :, :size]), lambda: (latents.float(), latents.float()[:, :, :size])
    parts = [quantize(part, form) for part in latents.split([size, latents.shape[2] - size], dim=2)]
    k = torch.cat([codes.view(torch.uint8) for codes, _ in parts], dim=2).view(form)
    factors = torch.stack([scales for _, scales in parts], dim=2)

    def exact() -> tuple[torch.Tensor, torch.Tensor]:
        values = dequantize_parts(k, factors, size)
        return values, values[:, :, :size]

    return attention.Pools(k, k[:, :, :size], factors, factors[:, :, 0]), exact


def torch_attention(lens: Sequence[tuple[int, int]], heads: tuple[int, int], head_dim: int) -> Callable[[], object]:
    """torch's own, for rows of one length whose keys and values lie in a row, without a table."""
    query_len, seq_len = lens[0]
    q = random(len(lens), heads[0], query_len, head_dim)
    k, v = (random(len(lens), heads[1], seq_len, head_dim, seed=seed) for seed in (1, 2))
    options = {"enable_gqa": heads[0] != heads[1], "is_causal": query_len == seq_len}
    return partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, **options)


def attention_cases() -> Iterator[tuple[str, Callable[..., Problem]]]:
    n, ctx = (2, 24) if REHEARSAL else (64, 4096)
    for name, form in (("bf16", BF16), ("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
        yield f"decode {n} x {ctx}, 64:8 heads of 128, {name}", partial(attention_problem, [(1, ctx)] * n, (64, 8), form=form)
    yield f"decode {n} x {ctx}, 32:32 heads of 128", partial(attention_problem, [(1, ctx)] * (n // 2), (32, 32))
    yield f"decode {n} x {ctx}, 48:1 heads of 128", partial(attention_problem, [(1, ctx)] * n, (48, 1))
    yield f"decode {n} x {ctx}, 64:8 heads of 64", partial(attention_problem, [(1, ctx)] * n, (64, 8), 64)
    yield f"decode {n} x {ctx}, 16:8 heads of 256", partial(attention_problem, [(1, ctx)] * n, (16, 8), 256)
    for name, form in (("", BF16), (", int8", torch.int8)):
        yield (
            f"decode {n} x {ctx}, latent 512+64, 128 heads{name}",
            partial(attention_problem, [(1, ctx)] * n, (128, 1), 576, value_dim=512, form=form),
        )
    ragged = [(1, ctx * (row + 1) // n) for row in range(n)]
    yield f"decode {n} ragged up to {ctx}, 64:8 heads of 128", partial(attention_problem, ragged, (64, 8))
    yield f"decode 1 x {8 * ctx}, 64:8 heads of 128", partial(attention_problem, [(1, 8 * ctx)], (64, 8))
    rows = 1 if REHEARSAL else 4
    for name, options in (("bf16", {}), ("int8", {"form": torch.int8}), ("window 1024", {"window": 1024})):
        yield (
            f"prefill {rows} x {ctx}, 32:8 heads of 128, {name}",
            partial(attention_problem, [(ctx, ctx)] * rows, (32, 8), **options),
        )
    yield f"prefill {rows} x {ctx}, 32:8 heads of 64", partial(attention_problem, [(ctx, ctx)] * rows, (32, 8), 64)
    yield f"prefill {2 * rows} chunks of {ctx // 8} on {ctx}", partial(attention_problem, [(ctx // 8, ctx)] * 2 * rows, (32, 8))
    yield (
        f"prefill {rows} x {ctx // 4}, latent, 16 heads",
        partial(attention_problem, [(ctx // 4,) * 2] * rows, (16, 1), 576, value_dim=512),
    )
