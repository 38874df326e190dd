"""The Triton kernels of attention against their reference: interpreted, or on the GPU where there is one.

`KERNEL_CASES` is how many random batches are compared (18 by default); the head sizes and forms of pools come in turn.
"""

import os
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from actorllm_kernels.attention import RaggedKeys, flat_spans, reference
from actorllm_kernels.quantize import LARGEST, dequantize_parts, quantize
from tests.kernels.ragged_pool import Pool

triton = pytest.importorskip("actorllm_kernels.attention.triton", exc_type=ImportError, reason="needs Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_CASES = int(os.environ.get("KERNEL_CASES", "18"))
HEAD_DIMS = (64, 128, 80, 256, 96, 576)
LATENT_GROUPS = (16, 48, 128)
"""Query heads of latents."""
FORMS = (torch.float16, torch.int8, torch.bfloat16, torch.float8_e4m3fn, torch.float32)
TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 2e-2, torch.float32: 1e-4}


@dataclass
class Case:
    """A batch, and what its attention is asked with."""

    pool: Pool
    dtype: torch.dtype
    form: torch.dtype
    value_dim: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    is_fused: bool = False
    """Whether queries are the beginning of rows that go on with keys and values."""

    def results(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the kernels and what the reference in float32 make of the same stored numbers."""
        options = dict(self.options)
        keys = self.pool.keys(options.pop("window", None), DEVICE)
        q = torch.cat([q for q, _, _ in self.pool.rows]).to(DEVICE, self.dtype)
        stored, exact = self.stored()
        options = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
        given = torch.cat((q, torch.full_like(q, torch.nan)), dim=1)[:, : q.shape[1]] if self.is_fused else q
        got = triton.attend(given, keys=keys, **stored, **options)
        assert got.dtype == self.dtype
        return got.float(), reference.attend(q.float(), keys=keys, **exact, **options)

    def stored(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The pools as the kernels and as the reference get them: quantized ones alike, others exactly in float32."""
        k, v = (pool.to(DEVICE) for pool in (self.pool.k, self.pool.v))
        if self.form not in LARGEST:
            k, v = k.to(self.form), v.to(self.form)
            plain = {"k_NKD": k, "v_NKE": self.values(k, v)}
            return plain, {"k_NKD": k.float(), "v_NKD": self.values(k, v).float()}
        if self.value_dim:
            return self.stored_latents(k, self.value_dim)
        (k, k_scales), (v, v_scales) = quantize(k, self.form), quantize(v, self.form)
        scales = {"k_scales_NK": k_scales, "v_scales_NK": v_scales}
        return {"k_NKD": k, "v_NKE": v, **scales}, {"k_NKD": k, "v_NKD": v, **scales}

    def stored_latents(self, latents: torch.Tensor, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """A latent and a rotated key of another order of size, with a factor each."""
        parts = [quantize(part, self.form) for part in (latents[:, :, :size], latents[:, :, size:] * 8)]
        k = torch.cat([values.view(torch.uint8) for values, _ in parts], dim=-1).view(self.form)
        scales = torch.stack([scales for _, scales in parts], dim=-1)
        exact = dequantize_parts(k, scales, size)
        stored = {"k_NKD": k, "v_NKE": k[:, :, :size], "k_scales_NK": scales, "v_scales_NK": scales[:, :, 0]}
        return stored, {"k_NKD": exact, "v_NKD": exact[:, :, :size]}

    def values(self, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """With latents the values are the beginning of the keys."""
        return k[:, :, : self.value_dim] if self.value_dim else v


def draw(seed: int) -> Case:
    """A random batch: decode rows, chunks, whole prompts and rows without queries over shuffled, partly shared slots."""
    rng = random.Random(seed)
    head_dim, form = HEAD_DIMS[seed % len(HEAD_DIMS)], FORMS[seed % len(FORMS)]
    is_latent = head_dim == 576
    num_kv_heads = 1 if is_latent else rng.choice((1, 2))
    turn = seed // len(HEAD_DIMS)
    of_one = LATENT_GROUPS[turn % len(LATENT_GROUPS)] if is_latent else rng.choice((1, 3, 8, 17, 48))
    num_heads = num_kv_heads * (of_one if num_kv_heads == 1 else rng.choice((1, 4)))
    rows = [rng.choice((one_token, long_row, chunk, prompt, no_queries))(rng) for _ in range(rng.randint(1, 4))] + [
        one_token(rng)
    ]
    pool = Pool(rows, num_heads, num_kv_heads, seed=seed, head_dim=head_dim)
    pool.share_prefix(rng.choice((0, 0, 20)))
    dtype = form if form.itemsize > 1 else rng.choice((torch.float16, torch.bfloat16))
    options: dict[str, Any] = {"scale": head_dim**-0.5, "window": rng.choice((None, None, 1, 7, 64))}
    if rng.random() < 0.3:
        options["soft_cap"] = rng.choice((0.5, 20.0))
    if (seed + turn) % 2:
        options["sinks_H"] = torch.linspace(-2, 3, num_heads)
    if rng.random() < 0.3:
        options["slopes_H"] = torch.linspace(0, 1, num_heads)
    return Case(pool, dtype, form, 512 if is_latent else None, options, is_fused=rng.random() < 0.5)


def one_token(rng: random.Random) -> tuple[int, int]:
    return 1, rng.randint(1, 40)


def long_row(rng: random.Random) -> tuple[int, int]:
    return 1, rng.randint(100, 700)


def chunk(rng: random.Random) -> tuple[int, int]:
    return rng.randint(2, 40), rng.randint(40, 200)


def prompt(rng: random.Random) -> tuple[int, int]:
    return (length := rng.randint(1, 70)), length


def no_queries(rng: random.Random) -> tuple[int, int]:
    return 0, rng.randint(1, 9)


def check(case: Case) -> None:
    got, expected = case.results()
    torch.testing.assert_close(got, expected, atol=TOLERANCE[case.dtype] * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_equals_the_reference(seed, monkeypatch):
    monkeypatch.setattr(triton, "PROGRAMS_PER_PROCESSOR", (1, 4, 16)[seed % 3])  # how finely the key axis is cut
    check(draw(seed))


@pytest.mark.parametrize("num_parts", [1, 2, 8])
def test_any_number_of_parts(num_parts):
    case = Case(Pool([(1, 1), (1, 65), (1, 450)], 4, 2, head_dim=64), torch.float16, torch.float16)
    q = torch.cat([q for q, _, _ in case.pool.rows]).to(DEVICE, case.dtype)
    stored, _ = case.stored()
    keys = case.pool.keys(device=DEVICE)
    out = torch.full_like(q, torch.nan)
    scores = triton.Scores(0.3, sinks_H=torch.ones(4, device=DEVICE))
    for launch in triton.decode(q, triton.Pools(**stored), keys, scores=scores, out_THE=out, num_parts=num_parts):
        launch.run()
    torch.testing.assert_close(out.float().cpu(), case.pool.expected(sinks_H=torch.ones(4)), atol=3e-3, rtol=0)


def test_padding_rows_without_keys_give_zeros():
    pool = Pool([(1, 5), (1, 3), (1, 9)], 2, 1, head_dim=64)
    keys = RaggedKeys(flat_spans([(0, 1, 5), (1, 1, 0), (2, 1, 9)]), pool.table.to(DEVICE))
    got = triton.attend(
        torch.cat([q for q, _, _ in pool.rows]).to(DEVICE),
        pool.k.to(DEVICE),
        pool.v.to(DEVICE),
        keys,
        scale=0.3,
    ).cpu()
    assert not got[1].any()
    torch.testing.assert_close(got[[0, 2]], pool.expected()[[0, 2]], atol=1e-4, rtol=0)


def test_reads_nothing_behind_the_window():
    pool = Pool([(1, 20), (4, 20)], 4, 2, head_dim=64)
    pool.table[0, :15] = pool.table[1, :12] = 2**30  # a stale table must not even be looked at
    check(Case(pool, torch.float16, torch.float16, options={"scale": 0.3, "window": 5}))


def test_lengths_are_read_from_the_device():
    pool = Pool([(1, 30), (1, 30)], 2, 1, head_dim=64)
    keys = RaggedKeys(flat_spans([(0, 1, 30), (1, 1, 30)]), pool.table.to(DEVICE))
    q = torch.cat([q for q, _, _ in pool.rows]).to(DEVICE)
    out = torch.empty_like(q)
    captured = triton.launches(
        q, triton.Pools(pool.k.to(DEVICE), pool.v.to(DEVICE)), keys, scores=triton.Scores(0.3), out_THE=out
    )
    keys.spans_B4[1, 3] = 11
    for launch in captured:
        launch.run()
    _, k, v = pool.rows[1]
    pool.rows[1] = (pool.rows[1][0], k[:11], v[:11])
    torch.testing.assert_close(out.cpu(), pool.expected(), atol=1e-4, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_graph_follows_the_lengths():
    pool = Pool([(1, 600), (1, 600)], 2, 1, head_dim=64)
    keys = RaggedKeys(pool.spans, pool.table.to(DEVICE))
    given = torch.cat([q for q, _, _ in pool.rows]).to(DEVICE), pool.k.to(DEVICE), pool.v.to(DEVICE), keys
    triton.attend(*given, scale=0.3)  # compiled before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = triton.attend(*given, scale=0.3)
    keys.spans_B4[1, 3] = 11
    graph.replay()
    _, k, v = pool.rows[1]
    pool.rows[1] = (pool.rows[1][0], k[:11], v[:11])
    torch.testing.assert_close(out.cpu(), pool.expected(), atol=1e-4, rtol=0)


def test_pools_without_their_factors_are_refused():
    pool = Pool([(1, 5)], 2, 1, head_dim=64)
    with pytest.raises(ValueError, match="factors"):
        triton.attend(
            pool.rows[0][0].half(), pool.k.to(torch.int8), pool.v.to(torch.int8), RaggedKeys(flat_spans([(0, 1, 5)]), pool.table), scale=1
        )


def test_sinks_with_gaps_are_refused():
    pool = Pool([(1, 5)], 2, 1, head_dim=64)
    keys = RaggedKeys(flat_spans([(0, 1, 5)]), pool.table.to(DEVICE))
    q, k, v = (each.to(DEVICE) for each in (pool.rows[0][0], pool.k, pool.v))
    with pytest.raises(ValueError, match="sinks_H has strides"):
        triton.attend(q, k, v, keys, scale=1, sinks_H=torch.ones(4, device=DEVICE)[::2])


def test_the_number_of_rows_is_no_constant_of_prefill():
    found = []
    for num_rows in (1, 2, 3, 16):
        pool = Pool([(2, 5)] * num_rows, 2, 1, head_dim=64)
        table = torch.zeros(32, 8, dtype=torch.int32, device=DEVICE)
        q = torch.zeros(2 * num_rows, 2, 64, device=DEVICE)
        pools = triton.Pools(pool.k.to(DEVICE), pool.v.to(DEVICE))
        launch = triton.prefill(q, pools, RaggedKeys(pool.spans, table), scores=triton.Scores(1.0), out_THE=q)
        found.append(launch.constants)
    assert all(each == found[0] for each in found)


SPLITS = {8: (16, 0), 20: (32, 0), 64: (64, 0), 80: (64, 16), 96: (64, 32), 112: (128, 0), 576: (512, 64)}


@pytest.mark.parametrize("head_dim", SPLITS)
def test_head_dims_in_powers_of_two(head_dim):
    assert triton.split_size(head_dim) == SPLITS[head_dim]


@pytest.mark.parametrize("form", [torch.int8, torch.float8_e4m3fn])
def test_small_quantized_values_keep_their_digits_in_float16(form, monkeypatch):
    """Shares times factors are rounded to float16, whose smallest numbers have few bits."""
    monkeypatch.setitem(triton.LANGUAGE_TYPES, torch.float32, triton.LANGUAGE_TYPES[torch.float16])
    pool = Pool([(1, 600)] * 4, 8, 1, head_dim=64)
    pool.v *= 0.005
    for index, (q, k, v) in enumerate(pool.rows):
        pool.rows[index] = (q * 2, k, v)
    got, expected = Case(pool, torch.float16, form, options={"scale": 0.3}).results()
    assert (got - expected).norm() < 4e-4 * expected.norm()
