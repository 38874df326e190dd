"""What is computed between products: norms, gated products, rotating and storing."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.embedding import triton as embedding
from actorllm_kernels.gated import reference as gated_reference
from actorllm_kernels.gated import triton as gated
from actorllm_kernels.norm import reference as norm_reference
from actorllm_kernels.norm import triton as norm
from actorllm_kernels.rotary_store import Angles
from actorllm_kernels.rotary_store import reference as store_reference
from actorllm_kernels.rotary_store import triton as rotary_store
from actorllm_kernels.token_ids import triton as token_ids
from gpu_kernels.problem import BF16, DEVICE, REHEARSAL, Problem, num_bytes, random


def norm_problem(num_rows: int, size: int, *, is_rms: bool, chosen: Configuration | None = None) -> Problem:
    x, y, weight = random(num_rows, size), random(num_rows, size, seed=1), random(size, seed=2)
    results = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    options = {"weight_D": weight, "bias_D": None if is_rms else weight, "eps": 1e-5, "is_rms": is_rms, "results": results}
    launch = norm.launch(x, y, **options, chosen=chosen)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        total = (x + y).float()
        if is_rms:
            return results[1], norm_reference.rms_norm(total, weight.float(), eps=1e-5)
        return results[1], torch.nn.functional.layer_norm(total, (size,), weight.float(), weight.float(), 1e-5)

    return Problem([launch], both, num_bytes(x, y, *results))


def gated_problem(num_rows: int, size: int, activation: str, *, chosen: Configuration | None = None) -> Problem:
    gate, up = random(num_rows, 2 * size).chunk(2, dim=1)
    out = torch.full((num_rows, size), torch.nan, dtype=BF16, device=DEVICE)
    launch = gated.launch(gate, up, activation=activation, out_TI=out, chosen=chosen)
    return Problem(
        [launch], lambda: (out, gated_reference.gated(gate.float(), up.float(), activation=activation)), 3 * num_bytes(out)
    )


def store_problem(num_tokens: int, form: torch.dtype, *, chosen: Configuration | None = None) -> Problem:
    q, k, v = random(num_tokens, 80, 128).split([64, 8, 8], dim=1)
    out = torch.full(q.shape, torch.nan, dtype=BF16, device=DEVICE)
    angles = torch.cat((random(num_tokens, 1, 64, dtype=torch.float32),) * 2, dim=-1)
    tables = Angles(angles.cos().to(BF16), angles.sin().to(BF16))
    slots = torch.randperm(num_tokens, device=DEVICE)
    pools = tuple(torch.zeros(num_tokens, 8, 128, dtype=form, device=DEVICE) for _ in range(2))
    scales = tuple(torch.zeros(num_tokens, 8, device=DEVICE) for _ in range(2)) if form.itemsize == 1 else None
    launch = rotary_store.launch(
        q, k, v, angles=tables, slots_T=slots, pools=pools, scales=scales, out_THD=out, chosen=chosen
    )

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        exact = Angles(tables.cos_T1R.float(), tables.sin_T1R.float())
        stored = pools[0][slots].float() * (1 if scales is None else scales[0][slots].unsqueeze(-1))
        got = torch.cat((out.float(), stored), dim=1)
        wanted = [store_reference.rotate(heads.float(), exact) for heads in (q, k)]
        if scales is not None:
            wanted = [store_reference.spread(heads, exact) for heads in wanted]
        return got, torch.cat(wanted, dim=1)

    return Problem([launch], results, num_bytes(q, k, v, out, *pools, *(scales or ()), *tables[:2]))


def embedding_problem(num_tokens: int, size: int, vocab_size: int, *, chosen: Configuration | None = None) -> Problem:
    table, ids = random(vocab_size, size), torch.randperm(vocab_size, device=DEVICE)[:num_tokens]
    out = torch.full((num_tokens, size), torch.nan, dtype=BF16, device=DEVICE)
    launch = embedding.launch(ids, table, first_id=0, out_TD=out, chosen=chosen)

    def rival() -> Callable[[], object]:
        return lambda: torch.nn.functional.embedding(ids, table)

    return Problem([launch], lambda: (out, table[ids].float()), 2 * num_bytes(out) + num_bytes(ids), rival=rival)


def ids_problem(num_rows: int) -> Problem:
    """What a decode step does with the last one's ids: keeps them by row, and reads them by row."""
    sampled, rows = torch.arange(1, num_rows + 1, device=DEVICE), torch.randperm(num_rows, device=DEVICE)
    last, unknown, out = torch.zeros_like(rows), torch.full_like(rows, -1), torch.zeros_like(rows)
    launches = [token_ids.scatter_launch(sampled, rows, last), token_ids.gather_launch(unknown, rows, last, out_T=out)]
    return Problem(launches, lambda: (out, sampled), 7 * num_bytes(rows))


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
        yield f"rotate and store {rows} tokens, 64:8 heads, {str(form)[6:]}", partial(store_problem, rows, form)
