"""The Triton kernels of attention against their reference: interpreted, or on the GPU where there is one.

With `KERNEL_CASES` there is a batch for every combination of head size, form, variant and kind of batch; else for every pair of these.
"""

import os

import pytest
import torch

from actorllm_kernels.attention import RaggedKeys, flat_spans
from tests.kernels.attention_cases import COMBINATIONS, DEVICE, HEAD_DIMS, KINDS, VARIANTS, Case, draw, pairs_of, pairwise
from tests.kernels.ragged_pool import Pool

device = pytest.importorskip("actorllm_kernels.device", exc_type=ImportError, reason="needs Triton")
triton = pytest.importorskip("actorllm_kernels.attention.triton", exc_type=ImportError, reason="needs Triton")
jit, tl, find_tile = pytest.importorskip("triton").jit, pytest.importorskip("triton.language"), triton.kernels.find_tile

DRAWN = COMBINATIONS if "KERNEL_CASES" in os.environ else pairwise(COMBINATIONS)
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""Of the largest result; a share and a result are rounded to half an ulp (5e-4, 4e-3), in the interpreter bfloat16 to a whole one."""


def check(case: Case) -> None:
    got, expected = case.results(triton)
    torch.testing.assert_close(got, expected, atol=TOLERANCE[case.dtype] * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("seed", range(len(DRAWN)), ids=lambda seed: "-".join(map(str, DRAWN[seed])))
def test_equals_the_reference(seed, monkeypatch):
    monkeypatch.setattr(device, "PROGRAMS_PER_PROCESSOR", (1, 4, 16)[seed % 3])  # how finely the key axis is cut
    check(draw(DRAWN[seed], seed))


def found_in(case: Case) -> set[object]:
    """What a drawn batch is, as the kernels see it."""
    options = {name for name in case.options if name != "scale"}
    lens = [(span.query_len, span.seq_len) for span in case.pool.spans]
    slots = [set(case.pool.table[row, :seq_len].tolist()) for row, (_, seq_len) in enumerate(lens)]
    assert all(taken != set(range(min(taken), max(taken) + 1)) for taken in slots if len(taken) > 3), "slots lie apart"
    found = {case.pool.k.shape[2], case.form, *(name for name, keys in VARIANTS.items() if set(keys) == options)}
    is_decode = {query_len for query_len, _ in lens} == {1}
    found |= {"one token"} if is_decode and max(seq_len for _, seq_len in lens) <= 40 else {"decode"} if is_decode else {"prefill"}
    found |= {"repeated slots"} if len(slots) > 1 and slots[0] & slots[1] else set()
    return found | ({"empty rows"} if min(query_len for query_len, _ in lens) == 0 else set())


def test_every_combination_is_drawn_or_every_pair_of_its_parts():
    assert len(COMBINATIONS) == len(set(COMBINATIONS)) == len(HEAD_DIMS) * 5 * len(VARIANTS) * len(KINDS) == 900
    everything = set().union(*map(pairs_of, COMBINATIONS))
    assert set().union(*map(pairs_of, DRAWN)) == everything and (len(DRAWN) == 900 or len(DRAWN) < 60)
    for seed, combination in enumerate(DRAWN):
        assert set(combination) <= found_in(draw(combination, seed)), combination


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
    torch.testing.assert_close(out.float().cpu(), case.pool.expected(sinks_H=torch.ones(4)), atol=2e-3, rtol=0)


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


@jit
def tiles_kernel(span_ptr, out_ptr, num_rows, BLOCK_Q: tl.constexpr, BLOCK_B: tl.constexpr):
    place = tl.program_id(0)
    row, tile = find_tile(span_ptr, num_rows, place, BLOCK_Q, BLOCK_B)
    tl.store(out_ptr + place * 2, row)
    tl.store(out_ptr + place * 2 + 1, tile)


def test_the_longest_tiles_of_a_chunk_come_first():
    spans = torch.tensor([[0, 0, 9, 9], [1, 9, 1, 5], [2, 10, 0, 3], [3, 10, 8, 20]], dtype=torch.int32, device=DEVICE)
    found = torch.zeros(7, 2, dtype=torch.int32, device=DEVICE)
    tiles_kernel[(7,)](spans, found, 4, BLOCK_Q=4, BLOCK_B=4)
    assert found[:5].tolist() == [[0, 2], [0, 1], [0, 0], [3, 1], [3, 0]]
    assert found[5:, 0].min() >= 4


@pytest.mark.parametrize("spread", ["slot_table", "k_scales_NK"])
def test_rows_with_gaps_are_refused(spread):
    pool = Pool([(1, 5)], 4, 2, head_dim=64)
    stored, _ = Case(pool, torch.float16, torch.int8).stored()
    table = pool.table.to(DEVICE)
    if spread == "slot_table":
        table = table.repeat_interleave(2, dim=1)[:, ::2]
    else:
        stored |= {name: stored[name].t().contiguous().t() for name in ("k_scales_NK", "v_scales_NK")}
    with pytest.raises(ValueError, match=f"{spread} has strides"):
        triton.attend(pool.rows[0][0].to(DEVICE, torch.float16), keys=RaggedKeys(pool.spans, table), scale=1, **stored)


def test_a_window_is_cut_into_no_more_parts_than_it_is_long(monkeypatch):
    monkeypatch.setattr(device, "num_processors", lambda _: 132)
    q, pool = torch.zeros(1, 4, 64, device=DEVICE), torch.zeros(9, 2, 64, device=DEVICE)
    table, parts = torch.zeros(1, 8192, dtype=torch.int32, device=DEVICE), {}
    for window in (None, 512, 1):
        keys = RaggedKeys(flat_spans([(0, 1, 9)]), table, window)
        launch, *_ = triton.decode(q, triton.Pools(pool, pool.clone()), keys, scores=triton.Scores(1.0), out_THE=q)
        parts[window] = launch.constants["PARTS"]
    assert parts[None] > parts[512] > parts[1] == 1


@pytest.mark.parametrize(("head_dim", "step"), [(128, 16), (72, 8), (100, 4), (33, 1)])
def test_heads_are_known_to_lie_apart_in_multiples_of_a_power_of_two(head_dim, step):
    pool = torch.zeros(9, 2, 2 * head_dim, device=DEVICE)
    k, v = pool.split(head_dim, dim=2)
    assert triton.step_of(triton.Pools(k.contiguous(), v.contiguous())) == step
    assert triton.step_of(triton.Pools(k, v)) == min(2 * step, 16), "of which each head has the half"


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
def test_small_quantized_values_keep_their_digits_in_float16(form):
    """Shares times factors are rounded to float16, whose smallest numbers have few bits."""
    pool = Pool([(1, 600)] * 4, 8, 1, head_dim=64)
    pool.v *= 0.005
    for index, (q, k, v) in enumerate(pool.rows):
        pool.rows[index] = (q * 2, k, v)
    got, expected = Case(pool, torch.float16, form, options={"scale": 0.3}).results(triton)
    assert (got - expected).norm() < 4e-4 * expected.norm()
