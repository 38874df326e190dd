"""The C++ attention kernel against the formula and against its reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm_kernels import attention
from actorllm_kernels.attention import cpu, reference
from actorllm_kernels.native import library
from tests.kernels.ragged_pool import NUM_SLOTS, Pool

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")

lens = st.integers(1, 300).flatmap(lambda seq_len: st.tuples(st.integers(1, min(seq_len, 70)), st.just(seq_len)))
EXTRAS = {
    "soft_cap": st.sampled_from([0.5, 30.0]),
    "sinks_H": st.integers(0, 9).map(lambda seed: torch.randn(12, generator=torch.Generator().manual_seed(seed)) * 2),
    "slopes_H": st.just(torch.linspace(0.0, 1.0, 12)),
}


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(lens, min_size=1, max_size=4),
    st.sampled_from([1, 2, 4, 12]),
    st.sampled_from([8, 10, 64, 80]),
    st.sampled_from([None, 1, 5, 128]),
    st.fixed_dictionaries({}, optional=EXTRAS),
)
def test_equals_the_reference(rows, num_kv_heads, head_dim, window, extras):
    pool = Pool(rows, 12, num_kv_heads, head_dim=head_dim)
    close(pool.attend(cpu, window=window, **extras), pool.attend(reference, window=window, **extras))


@pytest.mark.parametrize("window", [None, 3])
def test_equals_the_formula(window):
    pool = Pool([(1, 40), (40, 40), (3, 17)], 6, 2, head_dim=24)
    close(pool.attend(cpu, window=window), pool.expected(window=window))


@pytest.mark.parametrize("rows", [[(1, 5000)], [(1, 1024)], [(2, 3000), (1, 3)], [(130, 9000)]])
@pytest.mark.parametrize("extras", [{}, {"sinks_H": torch.tensor([3.0, -1.0]), "soft_cap": 4.0}])
def test_long_rows_in_parts_equal_the_reference(rows, extras):
    pool = Pool(rows, 2, 1, head_dim=16)  # so few heads that the keys of a row are shared out over the threads
    close(pool.attend(cpu, scale=0.9, **extras), pool.attend(reference, scale=0.9, **extras))


def test_a_maximum_that_stays_costs_no_digits():
    pool = Pool([(1, 30000)], 32, 1, head_dim=64)
    slots = pool.table[0, :30000].long()
    pool.k[slots[0]] = 0.5  # the largest scores of all
    pool.k[slots[1:]] *= 0.01
    pool.v.abs_()
    q = pool.rows[0][0].abs_()
    scores_HJ = (q[0].double() @ pool.k[slots, 0].double().T) * 0.125
    expected = scores_HJ.softmax(dim=-1) @ pool.v[slots, 0].double()
    errors = pool.attend(cpu, scale=0.125)[0].double() / expected - 1
    assert errors.abs().max() < 1e-5 and errors.mean().abs() < 3e-7


@pytest.mark.parametrize("heads", [(64, 1), (128, 2)])
def test_one_query_with_many_heads(heads):
    pool = Pool([(1, 200), (5, 300)], *heads, head_dim=32)
    close(pool.attend(cpu), pool.attend(reference))


@pytest.mark.parametrize("scale", [40.0, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores_do_not_overflow(scale, dtype):
    pool = Pool([(4, 50), (1, 700), (40, 90)], 2, 2, head_dim=64)
    pool.k, pool.v = pool.k.to(dtype), pool.v.to(dtype)
    got = pool.attend(cpu, scale=scale)
    pool.k, pool.v = pool.k.float(), pool.v.float()
    expected = pool.attend(reference, scale=scale)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)  # scores of a thousand have few digits behind the point


def test_a_high_soft_cap_keeps_the_digits_of_small_scores():
    pool = Pool([(1, 30), (6, 30)], 4, 2, head_dim=64)
    torch.testing.assert_close(pool.attend(cpu, soft_cap=1e4), pool.attend(cpu), atol=2e-6, rtol=1e-5)


def test_bfloat16_pools_are_read_exactly():
    pool = Pool([(1, 90), (9, 33), (20, 20), (70, 80)], 4, 2, head_dim=40)
    pool.k, pool.v = pool.k.bfloat16(), pool.v.bfloat16()
    got = pool.attend(cpu)
    pool.k, pool.v = pool.k.float(), pool.v.float()
    expected = pool.attend(reference)
    close(got, expected)
    assert (got - expected).norm() < 1e-6 * expected.norm()  # weights have no fewer digits where many rows are multiplied at once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_with_values_that_are_not_finite(dtype):
    pool = Pool([(40, 90), (40, 60), (40, 50)], 4, 2, head_dim=40)
    pool.k, pool.v = pool.k.to(dtype), pool.v.to(dtype)
    expected = pool.attend(cpu)
    pool.k[pool.table[0, 45], 1], pool.v[pool.table[2, 9], 0] = torch.nan, torch.inf
    got = pool.attend(cpu)
    close(got[:40, :2], expected[:40, :2])
    close(got[40:80], expected[40:80])
    close(got[80:, 2:], expected[80:, 2:])
    assert got[:40, 2:].isnan().all() and (got[80:, :2] == torch.inf).all()


def test_many_rows_with_the_largest_values():
    pool = Pool([(40, 90)], 4, 2, head_dim=40)
    pool.v[pool.table[0, 45]] = torch.finfo(torch.float32).max  # as a bfloat16 it would be infinite
    expected = pool.attend(reference)
    assert expected.isfinite().all()
    torch.testing.assert_close(pool.attend(cpu), expected, atol=0, rtol=1e-5)


def test_values_of_another_size_than_keys():
    pool = Pool([(1, 90), (12, 33)], 4, 2, head_dim=48)
    whole = pool.attend(reference)
    pool.v = pool.v[:, :, :20]
    close(pool.attend(cpu), whole[:, :, :20])


def test_reads_nothing_behind_the_window():
    pool = Pool([(1, 20), (4, 20)], 4, 2)
    expected = pool.expected(window=5)
    pool.k[pool.table[0, :15].long()] = torch.nan
    pool.k[pool.table[1, :12].long()] = torch.nan
    pool.table[:, :12] = NUM_SLOTS * 10
    close(pool.attend(cpu, window=5), expected)


@pytest.mark.parametrize(("row", "mates"), [((3, 9), [(1, 40), (7, 7)]), ((71, 71), [(400, 400)])])
def test_a_row_does_not_depend_on_its_mates(row, mates):
    alone, beside = Pool([row], 4, 2), Pool([row, *mates], 4, 2)
    assert torch.equal(alone.attend(cpu), beside.attend(cpu)[: row[0]])


def test_strided_queries():
    pool = Pool([(1, 30), (6, 30)], 4, 2, head_dim=16)
    wide = [torch.randn(len(q), 4 * 16 + 7) for q, _, _ in pool.rows]
    pool.rows = [(row[:, 3:67].view(-1, 4, 16), k, v) for row, (_, k, v) in zip(wide, pool.rows, strict=True)]
    close(pool.attend(cpu), pool.attend(reference))


def test_is_what_runs_on_a_cpu(monkeypatch):
    pool = Pool([(1, 9)], 4, 2)
    expected = pool.attend(reference)
    monkeypatch.setattr(reference, "attend", None)
    close(pool.attend(attention), expected)
    with pytest.raises(TypeError):  # the reference takes what the kernel has no code for
        pool.k, pool.v = pool.k.double(), pool.v.double()
        pool.attend(attention)
