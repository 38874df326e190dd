"""The C++ kernels that a step begins and ends with, against their references: ids, slots, rows of tables, angles of positions, and
the best token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm_kernels import embedding, linear, rotary_store, sampling, token_ids
from actorllm_kernels.linear import reference
from actorllm_kernels.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")

seeds = st.integers(0, 1000)


def ints(shape: tuple[int, ...], most: int, seed: int) -> torch.Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(0, 20), seeds)
def test_ids_and_slots(num_tokens: int, seed: int) -> None:
    """Rows may be a column of something wider; no row and place comes twice."""
    ids_T, rows_T = ints((num_tokens,), 9, seed) - 3, ints((num_tokens, 4), 5, seed + 1)[:, 1]
    last_ids_R = ints((5,), 99, seed + 2)
    expected = token_ids.reference.gather_ids(ids_T, rows_T, last_ids_R)
    assert token_ids.cpu.gather_ids(ids_T, rows_T, last_ids_R).equal(expected)
    both_2R, distinct = last_ids_R.repeat(2, 1), torch.randperm(5)[: min(5, num_tokens)]
    token_ids.cpu.scatter_ids(ids_T[: len(distinct)], distinct, both_2R[0])
    token_ids.reference.scatter_ids(ids_T[: len(distinct)], distinct, both_2R[1])
    assert both_2R[0].equal(both_2R[1])
    tables = torch.zeros(2, 5, 21, dtype=torch.int32)
    places = torch.arange(num_tokens), ints((num_tokens,), 2**31 - 1, seed + 3)
    token_ids.cpu.enter_slots(tables[0, :, 1:], rows_T, *places)
    token_ids.reference.enter_slots(tables[1, :, 1:], rows_T, *places)
    assert tables[0].equal(tables[1])


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 70), seeds)
def test_rows_of_tables(num_tokens: int, num_rows: int, size: int, seed: int) -> None:
    w, ids = torch.randn(num_rows, size + 3, generator=torch.Generator().manual_seed(seed))[:, :size], ints((num_tokens,), num_rows, seed)
    assert embedding.cpu.embedding(ids, w).equal(w[ids])
    packed = reference.pack_bf16(reference.bf16_codes(w))
    assert linear.cpu.rows_bf16(packed, ids, size).equal(reference.rows_bf16(packed, ids, size))
    packed, scales = reference.pack_int8(*reference.int8_codes(w))
    assert linear.cpu.rows_int8(packed, scales, ids, size).equal(reference.rows_int8(packed, scales, ids, size))
    packed, scales = reference.pack_int4(*reference.int4_codes(w, 32), 32)
    assert linear.cpu.rows_int4(packed, scales, ids, size).equal(reference.rows_int4(packed, scales, ids, size))


def test_an_id_that_no_table_holds_reads_nothing_and_gives_nan() -> None:
    rows = embedding.cpu.embedding(torch.tensor([-1, 1, 4, 10**12]), torch.ones(4, 8))
    assert rows.isnan().all(dim=1).tolist() == [True, False, True, True]


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 64), st.booleans(), st.sampled_from([1.0, 1.4]), st.sampled_from([100, 131072]), seeds)
def test_angles(num_tokens: int, num_frequencies: int, is_interleaved: bool, factor: float, most: int, seed: int) -> None:
    """Against double precision: sines and cosines of the float32 product of position and frequency."""
    positions, frequencies = ints((num_tokens, 2), most, seed)[:, 1], 10000.0 ** (-torch.arange(num_frequencies) / num_frequencies)
    got = rotary_store.cpu.angles_of(positions, frequencies, factor=factor, is_interleaved=is_interleaved)
    angles_TF = (positions.float().unsqueeze(1) * frequencies).double()
    expected = rotary_store.angles_at(angles_TF, factor=factor, is_interleaved=is_interleaved)
    for ours, theirs in zip(got[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-7, rtol=0)
    assert got.is_interleaved == is_interleaved


@settings(deadline=None)
@given(
    st.integers(0, 4),
    st.integers(1, 60),
    st.sampled_from([0.0, torch.inf, -torch.inf, torch.nan, 1e38]),
    st.integers(0, 59),
    st.booleans(),
    seeds,
)
def test_the_best_token(num_samples: int, vocab_size: int, odd: float, place: int, is_coarse: bool, seed: int) -> None:
    """Of equal ones the first; none where something is not finite."""
    logits = torch.randn(num_samples, vocab_size + 3, generator=torch.Generator().manual_seed(seed))[:, 2 : 2 + vocab_size]
    if is_coarse:
        logits = logits.round()
    if num_samples:
        logits[seed % num_samples, place % vocab_size] = odd
    nobody = torch.zeros(num_samples, dtype=torch.int64)
    rows = sampling.Rows(torch.zeros(1, dtype=torch.int64), torch.zeros(1, sampling.NUM_PARAMETERS, dtype=torch.float64))
    needs = sampling.Needs(is_random=False, has_top_k=False, has_top_p=False, has_min_p=False)
    assert sampling.cpu.best(logits).equal(sampling.reference.draw(logits, nobody, nobody, rows=rows, needs=needs))


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_rows_without_a_best_token(bad: float) -> None:
    assert sampling.cpu.best(torch.full((2, 40), bad)).tolist() == [-1, -1]
