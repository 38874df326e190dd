"""What is computed between products: norms, gated products, rotating and storing."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from actorllm_kernels.comparison import tolerance
from actorllm_kernels.configurations import Configuration
from actorllm_kernels.embedding import triton as embedding
from actorllm_kernels.gated import reference as gated_reference
from actorllm_kernels.gated import triton as gated
from actorllm_kernels.norm import reference as norm_reference
from actorllm_kernels.norm import triton as norm
from actorllm_kernels.quantize import dequantize, dequantize_parts, quantize
from actorllm_kernels.rotary_store import Angles
from actorllm_kernels.rotary_store import reference as store_reference
from actorllm_kernels.rotary_store import triton as rotary_store
from actorllm_kernels.token_ids import triton as token_ids
from gpu_kernels.problem import BF16, DEVICE, REHEARSAL, Pair, Problem, normal, num_bytes

HEADS = (8, 2) if REHEARSAL else (64, 8)


def norm_problem(num_rows: int, size: int, *, is_rms: bool, chosen: Configuration | None = None) -> Problem:
    x, y, weight = normal(num_rows, size), normal(num_rows, size, seed=1), normal(size, seed=2)
    results = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    options = {"weight_D": weight, "bias_D": None if is_rms else weight, "eps": 1e-5, "is_rms": is_rms, "results": results}
    launch = norm.launch(x, y, **options, chosen=chosen)

    def both() -> list[Pair]:
        total = (x + y).float()
        if is_rms:
            normed = norm_reference.rms_norm(total, weight.float(), eps=1e-5)
        else:
            normed = norm_reference.layer_norm(total, weight_D=weight.float(), bias_D=weight.float(), eps=1e-5)
        return [*zip(results, (total, normed), strict=True)]

    return Problem([launch], both, num_bytes(x, y, *results))


def gated_problem(num_rows: int, size: int, activation: str, *, chosen: Configuration | None = None) -> Problem:
    gate, up = normal(num_rows, 2 * size).chunk(2, dim=1)
    out = torch.full((num_rows, size), torch.nan, dtype=BF16, device=DEVICE)
    launch = gated.launch(gate, up, activation=activation, out_TI=out, chosen=chosen)
    return Problem(
        [launch], lambda: [(out, gated_reference.gated(gate.float(), up.float(), activation=activation))], 3 * num_bytes(out)
    )


def store_problem(num_tokens: int, form: torch.dtype, *, chosen: Configuration | None = None) -> Problem:
    num_heads, num_kv_heads = HEADS
    q, k, v = normal(num_tokens, num_heads + 2 * num_kv_heads, 128).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    out = torch.full(q.shape, torch.nan, dtype=BF16, device=DEVICE)
    angles = torch.cat((normal(num_tokens, 1, 64, dtype=torch.float32),) * 2, dim=-1)
    tables = Angles(angles.cos().to(BF16), angles.sin().to(BF16))
    slots = torch.randperm(num_tokens, device=DEVICE)
    k_pool, v_pool = pools = [torch.zeros(num_tokens, num_kv_heads, 128, dtype=form, device=DEVICE) for _ in range(2)]
    factors = [torch.zeros(num_tokens, num_kv_heads, device=DEVICE) for _ in range(2)]
    scales = (factors[0], factors[1]) if form.itemsize == 1 else None
    launch = rotary_store.launch(
        q, k, v, angles=tables, slots_T=slots, pools=(k_pool, v_pool), scales=scales, out_THD=out, chosen=chosen
    )

    def results() -> list[Pair]:
        exact = Angles(tables.cos_T1R.float(), tables.sin_T1R.float())
        stored = [pool.float()[slots] * (1 if scales is None else each[slots].unsqueeze(-1)) for pool, each in zip(pools, factors, strict=True)]
        wanted = [store_reference.rotate(heads.float(), exact) for heads in (q, k)]
        if scales is not None:
            wanted = [store_reference.spread(heads, exact) for heads in wanted]
        return [*zip((out, *stored), (wanted[0], kept(wanted[1], form), kept(v.float(), form)), strict=True)]

    return Problem([launch], results, num_bytes(q, k, v, out, *pools, *(scales or ()), *tables[:2]), allowed=tolerance(BF16, form))


def kept(x: torch.Tensor, form: torch.dtype) -> torch.Tensor:
    """What a pool of this form gives back."""
    return dequantize(*quantize(x, form)) if form.itemsize == 1 else x


def latent_store_problem(num_tokens: int, form: torch.dtype) -> Problem:
    """Latents of 512 values with rotated keys of 64, and the rotated parts of all heads' queries."""
    q, both = normal(num_tokens, HEADS[0], 64), normal(num_tokens, 576, seed=1)
    latent, key = both.split([512, 64], dim=1)
    angles = torch.cat((normal(num_tokens, 1, 32, dtype=torch.float32),) * 2, dim=-1)
    tables, out = Angles(angles.cos().to(BF16), angles.sin().to(BF16)), torch.full(q.shape, torch.nan, dtype=BF16, device=DEVICE)
    slots, pool = torch.randperm(num_tokens, device=DEVICE), torch.zeros(num_tokens, 576, dtype=form, device=DEVICE)
    scales = torch.zeros(num_tokens, 2, device=DEVICE) if form.itemsize == 1 else None
    launch = rotary_store.launch_latent(q, latent, key, angles=tables, slots_T=slots, pool_NC=pool, scales_N2=scales, out_THP=out)

    def results() -> list[Pair]:
        exact = Angles(tables.cos_T1R.float(), tables.sin_T1R.float())
        stored = pool.float() if scales is None else dequantize_parts(pool, scales, 512)
        rotated_q, rotated_key = (store_reference.rotate(heads.float(), exact) for heads in (q, key.unsqueeze(1)))
        got_latent, got_key = stored[slots].split([512, 64], dim=1)
        return [(out, rotated_q), (got_latent, kept(latent.float(), form)), (got_key, kept(rotated_key.squeeze(1), form))]

    return Problem([launch], results, num_bytes(q, both, out, pool, scales, *tables[:2]), allowed=tolerance(BF16, form))


def embedding_problem(num_tokens: int, size: int, vocab_size: int, *, chosen: Configuration | None = None) -> Problem:
    table, ids = normal(vocab_size, size), torch.randperm(vocab_size, device=DEVICE)[:num_tokens]
    out = torch.full((num_tokens, size), torch.nan, dtype=BF16, device=DEVICE)
    launch = embedding.launch(ids, table, first_id=0, out_TD=out, chosen=chosen)

    def rival() -> Callable[[], object]:
        return lambda: torch.nn.functional.embedding(ids, table)

    return Problem([launch], lambda: [(out, table[ids].float())], 2 * num_bytes(out) + num_bytes(ids), rival=rival)


def ids_problem(num_rows: int) -> Problem:
    """What a decode step does with the last one's ids: keeps them by row, and reads them by row."""
    sampled, rows = torch.arange(1, num_rows + 1, device=DEVICE), torch.randperm(num_rows, device=DEVICE)
    last, unknown, out = torch.zeros_like(rows), torch.full_like(rows, -1), torch.zeros_like(rows)
    launches = [token_ids.scatter_launch(sampled, rows, last), token_ids.gather_launch(unknown, rows, last, out_T=out)]
    return Problem(launches, lambda: [(out, sampled)], 7 * num_bytes(rows))


def around_cases() -> Iterator[tuple[str, Callable[..., Problem]]]:
    rows, size = (3, 256) if REHEARSAL else (16384, 8192)
    yield f"sum and RMS norm {rows} x {size}", partial(norm_problem, rows, size, is_rms=True)
    yield f"sum and layer norm {rows} x {size}", partial(norm_problem, rows, size, is_rms=False)
    vocab_size = 2 * rows if REHEARSAL else 128_256
    yield f"embedding of {rows} tokens, {size}", partial(embedding_problem, rows, size, vocab_size)
    yield "sampled ids of 256 rows, kept and read", partial(ids_problem, 256)
    for activation in ("silu", "gelu_tanh"):
        yield f"{activation} and product {rows} x {2 * size}", partial(gated_problem, rows, 2 * size, activation)
    for form in (BF16, torch.int8, torch.float8_e4m3fn):
        yield f"rotate and store {rows} tokens, {HEADS[0]}:{HEADS[1]} heads, {str(form)[6:]}", partial(store_problem, rows, form)
        yield f"rotate and store {rows} latents, {str(form)[6:]}", partial(latent_store_problem, rows, form)
