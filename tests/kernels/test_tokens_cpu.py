"""The C++ kernels that a step begins with, against their references: ids, slots, rows of tables, and angles of positions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm_kernels import embedding, linear, rotary_store, token_ids
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
    assert linear.cpu.rows_bf16(packed, ids).equal(reference.rows_bf16(packed, ids))
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
