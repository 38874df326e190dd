"""Attention of large batches, beside torch's own where that computes the same."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import torch

from actorllm_kernels.attention import RaggedKeys, flat_spans
from actorllm_kernels.attention import reference as attention_reference
from actorllm_kernels.attention import triton as attention
from actorllm_kernels.comparison import tolerance
from actorllm_kernels.configurations import Configuration
from actorllm_kernels.quantize import dequantize, dequantize_parts, quantize, rows_of
from gpu_kernels.problem import BF16, DEVICE, REHEARSAL, Problem, normal, num_bytes

CHECKED_QUERIES = 512
"""Of one row at a time, so that what is compared takes little memory."""
Exact = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""The keys and values in float32 that lie in some slots."""


def attention_problem(
    lens: Sequence[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int = 128,
    *,
    form: torch.dtype | None = None,
    dtype: torch.dtype = BF16,
    value_dim: int | None = None,
    window: int | None = None,
    extras: Collection[str] = (),
    chosen: Configuration | None = None,
) -> Problem:
    """Rows of (queries, keys) over shuffled slots of `form` (else of the queries' dtype); `extras`: "soft cap", "sinks", "ALiBi"."""
    form = form or dtype
    if REHEARSAL:
        heads = heads[0] // 8, max(heads[1] // 8, 1)
    (num_heads, num_kv_heads), num_slots = heads, sum(seq_len for _, seq_len in lens)
    pools, exact = make_pools(num_slots, num_kv_heads, head_dim, form=form, dtype=dtype, value_dim=value_dim)
    slots = torch.randperm(num_slots, device=DEVICE).to(torch.int32)
    table = torch.zeros(len(lens), max(seq_len for _, seq_len in lens), dtype=torch.int32, device=DEVICE)
    begin = 0
    for row, (_, seq_len) in enumerate(lens):
        table[row, :seq_len] = slots[begin : begin + seq_len]
        begin += seq_len
    keys = RaggedKeys(flat_spans((row, *each) for row, each in enumerate(lens)), table, window)
    q = normal(sum(query_len for query_len, _ in lens), num_heads, head_dim, dtype=dtype, seed=1)
    out = torch.full((len(q), num_heads, pools.v_NKE.shape[2]), torch.nan, dtype=dtype, device=DEVICE)
    scores = make_scores(extras, num_heads, head_dim)
    if lens[0][0] == 1:
        launches = attention.decode(q, pools, keys, scores=scores, out_THE=out, chosen=chosen)
    else:
        launches = [attention.prefill(q, pools, keys, scores=scores, out_THE=out, chosen=chosen)]
    seen = [min(position + 1, window or seq_len) for query_len, seq_len in lens for position in range(seq_len - query_len, seq_len)]
    num_read = sum(min(seq_len, (window or seq_len) + query_len - 1) for query_len, seq_len in lens)
    size = pools.v_NKE.shape[2]
    stored = (pools.k_NKD,) if value_dim else (pools.k_NKD, pools.v_NKE, pools.v_scales_NK)
    is_dense = window is None and form == dtype and not value_dim and not extras
    has_rival = is_dense and len({*lens}) == 1 and lens[0][0] in (1, lens[0][1])
    return Problem(
        launches,
        lambda: [(out, expected(q, exact, keys, scores))],
        num_bytes(*stored, pools.k_scales_NK) // num_slots * num_read + num_bytes(q, out),
        2 * sum(seen) * num_heads * (head_dim + size),
        partial(torch_attention, lens, heads, head_dim, dtype=dtype) if has_rival else None,
        is_attention=True,
        allowed=tolerance(dtype),
    )


def make_scores(extras: Collection[str], num_heads: int, head_dim: int) -> attention.Scores:
    slopes_H = torch.linspace(0.5, 0.004, num_heads, device=DEVICE) if "ALiBi" in extras else None
    sinks_H = normal(num_heads, dtype=torch.float32, seed=4) if "sinks" in extras else None
    return attention.Scores(head_dim**-0.5, 20.0 if "soft cap" in extras else None, sinks_H, slopes_H)


def expected(q: torch.Tensor, exact: Exact, keys: RaggedKeys, scores: attention.Scores) -> torch.Tensor:
    """What the reference gives for every query in float32: a row's keys as a pool of their own, some of its queries at a time."""
    found = []
    for row, start, query_len, seq_len in keys.spans:
        k, v = exact(keys.slot_table[row, :seq_len].long())
        places = torch.arange(seq_len, device=DEVICE, dtype=torch.int32).unsqueeze(0)
        for first in range(0, query_len, CHECKED_QUERIES):
            some = q[start + first : start + min(first + CHECKED_QUERIES, query_len)].float()
            spans = flat_spans([(0, len(some), seq_len - query_len + first + len(some))])
            options = {"scale": scores.scale, "soft_cap": scores.soft_cap, "sinks_H": scores.sinks_H, "slopes_H": scores.slopes_H}
            found.append(attention_reference.attend(some, k, v, RaggedKeys(spans, places, keys.window), **options))
    return torch.cat(found)


def make_pools(
    num_slots: int, num_kv_heads: int, head_dim: int, *, form: torch.dtype, dtype: torch.dtype, value_dim: int | None
) -> tuple[attention.Pools, Exact]:
    k = normal(num_slots, num_kv_heads, head_dim, dtype=dtype, seed=2)
    if value_dim:
        return make_latents(k, form=form, size=value_dim)
    v = normal(num_slots, num_kv_heads, head_dim, dtype=dtype, seed=3)
    if form == dtype:
        return attention.Pools(k, v), lambda slots: (k[slots].float(), v[slots].float())
    (k8, k_scales), (v8, v_scales) = quantize(k, form), quantize(v, form)

    def exact(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return dequantize(rows_of(k8, slots), k_scales[slots]), dequantize(rows_of(v8, slots), v_scales[slots])

    return attention.Pools(k8, v8, k_scales, v_scales), exact


def make_latents(latents: torch.Tensor, *, form: torch.dtype, size: int) -> tuple[attention.Pools, Exact]:
    """The same where values are the beginning of keys; in one byte a latent and its rotated key have a factor each."""
    if form == latents.dtype:
        return attention.Pools(latents, latents[:, :, :size]), lambda slots: beginning(latents[slots].float(), size)
    parts = [quantize(part, form) for part in latents.split([size, latents.shape[2] - size], dim=2)]
    k = torch.cat([codes.view(torch.uint8) for codes, _ in parts], dim=2).view(form)
    factors = torch.stack([scales for _, scales in parts], dim=2)
    pools = attention.Pools(k, k[:, :, :size], factors, factors[:, :, 0])
    return pools, lambda slots: beginning(dequantize_parts(rows_of(k, slots), factors[slots], size), size)


def beginning(k: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return k, k[:, :, :size]


def torch_attention(
    lens: Sequence[tuple[int, int]], heads: tuple[int, int], head_dim: int, *, dtype: torch.dtype
) -> Callable[[], object]:
    """torch's own, for rows of one length whose keys and values lie in a row, without a table."""
    query_len, seq_len = lens[0]
    q = normal(len(lens), heads[0], query_len, head_dim, dtype=dtype)
    k, v = (normal(len(lens), heads[1], seq_len, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    options = {"enable_gqa": heads[0] != heads[1], "is_causal": query_len == seq_len}
    return partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, **options)


def attention_cases() -> Iterator[tuple[str, Callable[..., Problem]]]:
    yield from decode_cases(*(2, 24) if REHEARSAL else (64, 4096))
    yield from prefill_cases(*(1, 24) if REHEARSAL else (4, 4096))


FORMS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
ADDED = (("soft cap",), ("sinks",), ("ALiBi",), ("soft cap", "sinks", "ALiBi"))


def decode_cases(n: int, ctx: int) -> Iterator[tuple[str, Callable[..., Problem]]]:
    """Of `n` rows with `ctx` keys each."""
    rows, of_heads = [(1, ctx)] * n, partial(attention_problem, [(1, ctx)] * n)
    yield f"decode {n} x {ctx}, 64:8 heads of 128, bf16", partial(of_heads, (64, 8))
    yield f"decode {n} x {ctx}, 64:8 heads of 128, fp16", partial(of_heads, (64, 8), dtype=torch.float16)
    for name, form in FORMS.items():
        yield f"decode {n} x {ctx}, 64:8 heads of 128, {name}", partial(of_heads, (64, 8), form=form)
        yield f"decode {n} x {ctx}, 64:8 heads of 128, {name}, fp16", partial(of_heads, (64, 8), form=form, dtype=torch.float16)
    yield f"decode {n // 2} x {ctx}, 32:32 heads of 128", partial(attention_problem, rows[: n // 2], (32, 32))
    yield f"decode {n} x {ctx}, 48:1 heads of 128", partial(of_heads, (48, 1))
    for head_dim in (64, 80, 96):
        yield f"decode {n} x {ctx}, 64:8 heads of {head_dim}", partial(of_heads, (64, 8), head_dim)
    yield f"decode {n} x {ctx}, 64:8 heads of 80, int8", partial(of_heads, (64, 8), 80, form=torch.int8)
    yield f"decode {n} x {ctx}, 16:8 heads of 256", partial(of_heads, (16, 8), 256)
    for extras in ADDED:
        yield f"decode {n} x {ctx}, 64:8 heads of 128, {', '.join(extras)}", partial(of_heads, (64, 8), extras=extras)
    yield f"decode {n} x {ctx}, 64:8 heads of 128, window 1024", partial(of_heads, (64, 8), window=1024)
    for name, form in {"bf16": None, **FORMS}.items():
        make = partial(of_heads, (128, 1), 576, value_dim=512, form=form)
        yield f"decode {n} x {ctx}, latent 512+64, 128 heads, {name}", make
    ragged = [(1, ctx * (row + 1) // n) for row in range(n)]
    yield f"decode {n} ragged up to {ctx}, 64:8 heads of 128", partial(attention_problem, ragged, (64, 8))
    yield f"decode 1 x {8 * ctx}, 64:8 heads of 128", partial(attention_problem, [(1, 8 * ctx)], (64, 8))


def prefill_cases(n: int, ctx: int) -> Iterator[tuple[str, Callable[..., Problem]]]:
    """Of `n` whole prompts of `ctx` tokens, and of chunks."""
    of_heads = partial(attention_problem, [(ctx, ctx)] * n, (32, 8))
    yield f"prefill {n} x {ctx}, 32:8 heads of 128, bf16", of_heads
    yield f"prefill {n} x {ctx}, 32:8 heads of 128, fp16", partial(of_heads, dtype=torch.float16)
    for name, form in FORMS.items():
        yield f"prefill {n} x {ctx}, 32:8 heads of 128, {name}", partial(of_heads, form=form)
    yield f"prefill {n} x {ctx}, 32:8 heads of 128, window 1024", partial(of_heads, window=1024)
    for extras in ADDED:
        yield f"prefill {n} x {ctx}, 32:8 heads of 128, {', '.join(extras)}", partial(of_heads, extras=extras)
    for head_dim in (64, 80, 96, 256):
        yield f"prefill {n} x {ctx}, 32:8 heads of {head_dim}", partial(of_heads, head_dim)
    chunks = [(ctx // 8, ctx)] * 2 * n
    yield f"prefill {2 * n} chunks of {ctx // 8} on {ctx}", partial(attention_problem, chunks, (32, 8))
    for name, form in {"bf16": None, **FORMS}.items():
        make = partial(attention_problem, [(ctx // 4, ctx // 4)] * n, (16, 1), 576, value_dim=512, form=form)
        yield f"prefill {n} x {ctx // 4}, latent 512+64, 16 heads, {name}", make
