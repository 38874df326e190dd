"""Attention over token slots against dense attention, written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from actorllm_kernels.attention import reference
from actorllm_kernels.rotary_store import store
from tests.kernels.ragged_pool import HEAD_DIM, NUM_SLOTS, Pool


class LargestResult(TorchDispatchMode):
    """Notes how many rows and tokens the largest result of an operator has, heads left out."""

    num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel() // (4 * HEAD_DIM))
        return result


lens = st.integers(1, 20).flatmap(lambda seq_len: st.tuples(st.integers(1, seq_len), st.just(seq_len)))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(lens, min_size=1, max_size=5),
    st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    st.sampled_from([None, 1, 3, 8, 64]),
)
def test_equals_dense_attention(rows, heads, window):
    pool = Pool(rows, *heads)
    torch.testing.assert_close(pool.attend(window=window), pool.expected(window), atol=1e-5, rtol=0)


EXTRAS = {
    "soft_cap": st.sampled_from([0.5, 3.0]),
    "sinks_H": st.integers(0, 9).map(lambda seed: torch.randn(4, generator=torch.Generator().manual_seed(seed)) * 2),
    "slopes_H": st.just(torch.tensor([0.5, 0.1, 1.0, 0.0])),
}


@settings(deadline=None, max_examples=80)
@given(
    st.lists(lens, min_size=1, max_size=4),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([None, 1, 5, 64]),
    st.fixed_dictionaries({}, optional=EXTRAS),
    st.sampled_from([1, 70, 2**22]),
)
def test_caps_sinks_and_slopes_equal_dense_attention(rows, num_kv_heads, window, extras, block_scores):
    pool = Pool(rows, 4, num_kv_heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "BLOCK_SCORES", block_scores)  # slices of one query, of some, and all at once
        got = pool.attend(window=window, **extras)
    torch.testing.assert_close(got, pool.expected(window, **extras), atol=1e-5, rtol=0)


@pytest.mark.parametrize("extra", [{"soft_cap": 0.5}, {"sinks_H": torch.ones(4)}, {"slopes_H": torch.ones(4)}])
def test_each_extra_matters(extra):
    pool = Pool([(3, 9), (1, 5)], 4, 2)
    assert not torch.allclose(pool.attend(**extra), pool.attend(), atol=1e-3)


def test_scores_of_a_long_prompt_do_not_exist_at_once(monkeypatch):
    monkeypatch.setattr(reference, "BLOCK_SCORES", 2048)
    pool = Pool([(100, 100)], 4, 4)
    with LargestResult() as mode:
        pool.attend(soft_cap=1.0)
    assert 0 < mode.num_elements * 4 * HEAD_DIM < 100 * 100 * 4


def test_half_precision_is_scored_in_float32():
    pool = Pool([(5, 30), (1, 30)], 4, 2)
    expected = pool.expected(soft_cap=5.0)
    pool.k, pool.v = pool.k.bfloat16(), pool.v.bfloat16()
    pool.rows = [(q.bfloat16(), k, v) for q, k, v in pool.rows]
    got = pool.attend(soft_cap=5.0)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("extras", [{}, {"soft_cap": 2.0, "sinks_H": torch.ones(4), "slopes_H": torch.ones(4)}])
def test_a_row_does_not_depend_on_its_mates(extras):
    alone, beside = Pool([(3, 9)], 4, 2), Pool([(3, 9), (1, 40), (7, 7)], 4, 2)
    assert torch.equal(alone.attend(**extras), beside.attend(**extras)[:3])


def test_reads_nothing_behind_the_window():
    pool = Pool([(1, 20), (4, 20)], 4, 2)
    expected = pool.expected(window=5)
    pool.k[pool.table[0, :15].long()] = torch.nan
    pool.k[pool.table[1, :12].long()] = torch.nan
    pool.table[:, :12] = NUM_SLOTS * 10  # a stale table must not even be looked at
    torch.testing.assert_close(pool.attend(window=5), expected, atol=1e-5, rtol=0)


def test_pads_nothing():
    rows = [(1, 100)] + [(1, 2)] * 15
    pool = Pool(rows, 4, 4)
    with LargestResult() as mode:
        pool.attend()
    assert 0 < mode.num_elements < len(rows) * 100  # not even one element for each place of a padded batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_store_writes_only_its_slots(dtype):
    pool = torch.zeros(6, 2, 3, dtype=dtype)
    values = torch.arange(12.0).view(2, 2, 3)
    store(values, torch.tensor([4, 1]), pool)
    assert torch.equal(pool[4], values[0].to(dtype))
    assert torch.equal(pool[1], values[1].to(dtype))
    assert not pool[[0, 2, 3, 5]].any()
