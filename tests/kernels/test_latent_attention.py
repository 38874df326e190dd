"""Latent attention over token slots against every head's keys and values written out."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm_kernels.attention import RaggedKeys, flat_spans
from actorllm_kernels.latent_attention import attend_latent, attend_latent_reference
from actorllm_kernels.rotary_store import store

LATENT, ROTATED, KEY, VALUE = 6, 4, 5, 3
NUM_SLOTS = 256


def expanded(q_QHK, q_QHP, latent_LR, rotated_LP, key_HKR, value_HVR, *, scale):
    """[Q, H, V] by keys and values of every head, one query, head and key at a time, in float64."""
    q_QHK, q_QHP, latent_LR, rotated_LP, key_HKR, value_HVR = (
        each.double() for each in (q_QHK, q_QHP, latent_LR, rotated_LP, key_HKR, value_HVR)
    )
    out = torch.zeros(len(q_QHK), len(key_HKR), VALUE, dtype=torch.float64)
    for query in range(len(q_QHK)):
        position = len(latent_LR) - len(q_QHK) + query
        for head in range(len(key_HKR)):
            scores = [
                float(q_QHK[query, head] @ (key_HKR[head] @ latent_LR[key]) + q_QHP[query, head] @ rotated_LP[key]) * scale
                for key in range(position + 1)
            ]
            shares = torch.tensor(scores, dtype=torch.float64).softmax(-1)
            for key, share in enumerate(shares):
                out[query, head] += share * (value_HVR[head] @ latent_LR[key])
    return out


lens = st.integers(1, 12).flatmap(lambda seq_len: st.tuples(st.integers(1, seq_len), st.just(seq_len)))


@pytest.mark.parametrize("operator", [attend_latent, attend_latent_reference])
@settings(deadline=None, max_examples=25)
@given(st.lists(lens, min_size=1, max_size=4), st.sampled_from([1, 2, 5]), st.integers(0, 100))
def test_folded_heads_equal_expanded_ones(operator, spans, num_heads, seed):
    generator = torch.Generator().manual_seed(seed)
    slots = random.Random(seed).sample(range(NUM_SLOTS), NUM_SLOTS)
    pool = torch.full((NUM_SLOTS, LATENT + ROTATED), torch.nan)
    table = torch.zeros(len(spans), 12, dtype=torch.int32)
    key_HKR = torch.randn(num_heads, KEY, LATENT, generator=generator)
    value_HVR = torch.randn(num_heads, VALUE, LATENT, generator=generator)
    queries, wanted = [], []
    for row, (query_len, seq_len) in enumerate(spans):
        taken = torch.tensor([slots.pop() for _ in range(seq_len)])
        table[row, :seq_len] = taken
        latent_LC = torch.randn(seq_len, LATENT + ROTATED, generator=generator)
        store(latent_LC, taken, pool)
        q_QHK = torch.randn(query_len, num_heads, KEY, generator=generator)
        q_QHP = torch.randn(query_len, num_heads, ROTATED, generator=generator)
        queries.append(torch.cat((torch.einsum("qhk,hkr->qhr", q_QHK, key_HKR), q_QHP), dim=-1))
        wanted.append(expanded(q_QHK, q_QHP, latent_LC[:, :LATENT], latent_LC[:, LATENT:], key_HKR, value_HVR, scale=0.4))
    keys = RaggedKeys(flat_spans((row, *span) for row, span in enumerate(spans)), table)
    mixed_THR = operator(torch.cat(queries), pool, keys, latent_size=LATENT, scale=0.4)
    got = torch.einsum("thr,hvr->thv", mixed_THR, value_HVR)
    torch.testing.assert_close(got, torch.cat(wanted).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operator", [attend_latent, attend_latent_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_queries(operator, dtype):
    pool = torch.randn(8, LATENT + ROTATED).to(dtype)
    keys = RaggedKeys(flat_spans([(0, 2, 5)]), torch.arange(5, dtype=torch.int32).unsqueeze(0))
    got = operator(torch.randn(2, 3, LATENT + ROTATED).to(dtype), pool, keys, latent_size=LATENT, scale=1.0)
    assert got.dtype == dtype and got.shape == (2, 3, LATENT)
