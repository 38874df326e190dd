"""Attention over token slots against dense attention, written out."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from actorllm_kernels import attention
from actorllm_kernels.attention import attend, row_keys
from actorllm_kernels.store_kv import store_kv

HEAD_DIM = 8
NUM_SLOTS = 512


def dense(q_QHD, k_LKD, v_LKD, *, window, scale, soft_cap=None, sinks_H=None, slopes_H=None):
    """[Q, H, D] the formula itself, in float64; the queries are the last of the sequence."""
    num_queries, num_keys = len(q_QHD), len(k_LKD)
    repeats = q_QHD.shape[1] // k_LKD.shape[1]
    k, v = (x.double().repeat_interleave(repeats, dim=1) for x in (k_LKD, v_LKD))
    scores = torch.einsum("qhd,lhd->hql", q_QHD.double(), k) * scale
    if soft_cap is not None:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    for query in range(num_queries):
        position = num_keys - num_queries + query
        for key in range(num_keys):
            if slopes_H is not None:
                scores[:, query, key] -= slopes_H.double() * (position - key)
            if key > position or (window is not None and key <= position - window):
                scores[:, query, key] = -math.inf
    weights = scores.exp()
    total = weights.sum(-1, keepdim=True)
    if sinks_H is not None:
        total = total + sinks_H.double().exp().view(-1, 1, 1)
    return torch.einsum("hql,lhd->qhd", weights / total, v)


class Pool:
    """A pool whose rows are stored at shuffled slots; everything else in it is NaN."""

    def __init__(self, lens: list[tuple[int, int]], num_heads: int, num_kv_heads: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        slots = random.Random(seed).sample(range(NUM_SLOTS), NUM_SLOTS)
        self.k, self.v = (torch.full((NUM_SLOTS, num_kv_heads, HEAD_DIM), torch.nan) for _ in range(2))
        self.table = torch.zeros(len(lens), 128, dtype=torch.int32)
        self.rows = []
        self.spans = []
        for row, (query_len, seq_len) in enumerate(lens):
            taken = torch.tensor([slots.pop() for _ in range(seq_len)])
            self.table[row, :seq_len] = taken
            k, v = torch.randn(2, seq_len, num_kv_heads, HEAD_DIM, generator=generator)
            store_kv(k, taken, self.k)
            store_kv(v, taken, self.v)
            self.rows.append((torch.randn(query_len, num_heads, HEAD_DIM, generator=generator), k, v))
            self.spans.append((row, query_len, seq_len))

    def attend(self, window: int | None = None, scale: float = 0.3, **extras) -> torch.Tensor:
        keys = row_keys(self.spans, self.table, window=window)
        return attend(torch.cat([q for q, _, _ in self.rows]), self.k, self.v, keys, scale=scale, **extras)

    def expected(self, window: int | None = None, scale: float = 0.3, **extras) -> torch.Tensor:
        return torch.cat([dense(q, k, v, window=window, scale=scale, **extras) for q, k, v in self.rows]).float()


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
    torch.testing.assert_close(pool.attend(window), pool.expected(window), atol=1e-5, rtol=0)


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
        patch.setattr(attention, "BLOCK_SCORES", block_scores)  # slices of one query, of some, and all at once
        got = pool.attend(window, **extras)
    torch.testing.assert_close(got, pool.expected(window, **extras), atol=1e-5, rtol=0)


@pytest.mark.parametrize("extra", [{"soft_cap": 0.5}, {"sinks_H": torch.ones(4)}, {"slopes_H": torch.ones(4)}])
def test_each_extra_matters(extra):
    pool = Pool([(3, 9), (1, 5)], 4, 2)
    assert not torch.allclose(pool.attend(**extra), pool.attend(), atol=1e-3)


def test_scores_of_a_long_prompt_do_not_exist_at_once(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_SCORES", 2048)
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
    store_kv(values, torch.tensor([4, 1]), pool)
    assert torch.equal(pool[4], values[0].to(dtype))
    assert torch.equal(pool[1], values[1].to(dtype))
    assert not pool[[0, 2, 3, 5]].any()
