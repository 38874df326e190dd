"""Kernels reach what lies more than 2^31 values into a tensor. Memory of which few pages are touched takes no more than these."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels.attention import RaggedKeys, flat_spans
from actorllm_kernels.attention import reference as attention_reference
from actorllm_kernels.attention import triton as attention_triton
from actorllm_kernels.embedding import triton as embedding_triton
from actorllm_kernels.launch import INTERPRETED
from actorllm_kernels.rotary_store import reference as store_reference
from actorllm_kernels.rotary_store import triton as store_triton

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="a GPU has no memory that is there only once it is touched")
NUM_SLOTS, NUM_HEADS, SIZE = 12_000_000, 4, 64
SLOTS = torch.tensor([0, 11_999_999, 7, 5_000_001, 11_000_000, 3])


def head_major(dtype: torch.dtype = torch.int8) -> torch.Tensor:
    """A pool [N, K, D] whose heads lie one after the other: the last one begins beyond 2^31."""
    return torch.empty(NUM_HEADS, NUM_SLOTS, SIZE, dtype=dtype).transpose(0, 1)


@pytest.mark.parametrize("query_lens", [(1, 1), (4, 2)])
def test_attention_over_a_head_major_pool(query_lens: tuple[int, int]) -> None:
    codes = torch.randint(-127, 128, (2, len(SLOTS), NUM_HEADS, SIZE), dtype=torch.int8)
    factors = torch.rand(2, len(SLOTS), NUM_HEADS) / 100
    pools, scales = [head_major() for _ in range(2)], [torch.empty(NUM_SLOTS, NUM_HEADS) for _ in range(2)]
    for pool, scale, code, factor in zip(pools, scales, codes, factors, strict=True):
        pool[SLOTS], scale[SLOTS] = code, factor
    q, spans = torch.randn(sum(query_lens), NUM_HEADS, SIZE), flat_spans([(0, query_lens[0], 6), (1, query_lens[1], 4)])

    def attend(operator, pools, scales, slots: torch.Tensor) -> torch.Tensor:
        keys = RaggedKeys(spans, torch.stack((slots, slots.flip(0))).to(torch.int32))
        return operator.attend(q, *pools, keys, scale=0.1, k_scales_NK=scales[0], v_scales_NK=scales[1])

    expected = attend(attention_reference, codes, factors, torch.arange(len(SLOTS)))
    torch.testing.assert_close(attend(attention_triton, pools, scales, SLOTS), expected)


@pytest.mark.parametrize("slot_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("is_head_major", [True, False])
def test_storing_into_large_pools(slot_dtype: torch.dtype, is_head_major: bool) -> None:
    k, v = torch.randn(2, len(SLOTS), NUM_HEADS, SIZE)
    few, few_scales = torch.zeros(2, len(SLOTS), NUM_HEADS, SIZE, dtype=torch.int8), torch.zeros(2, len(SLOTS), NUM_HEADS)
    given = k, k, v, None
    store_reference.rotate_and_store(*given, torch.arange(len(SLOTS)), (few[0], few[1]), (few_scales[0], few_scales[1]))
    make = head_major if is_head_major else lambda: torch.empty(NUM_SLOTS, NUM_HEADS, SIZE, dtype=torch.int8)
    pools, scales = (make(), make()), (torch.empty(NUM_SLOTS, NUM_HEADS), torch.empty(NUM_SLOTS, NUM_HEADS))
    store_triton.rotate_and_store(*given, SLOTS.to(slot_dtype), pools, scales)
    for part in range(2):
        assert torch.equal(pools[part][SLOTS], few[part])
        torch.testing.assert_close(scales[part][SLOTS], few_scales[part])


@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32])
def test_embedding_from_a_large_table(id_dtype: torch.dtype) -> None:
    table, ids = torch.empty(70_000, 32_768, dtype=torch.float16), torch.tensor([3, 69_999, 65_537])
    rows = torch.randn(len(ids), table.shape[1]).to(table.dtype)
    table[ids] = rows
    assert torch.equal(embedding_triton.embedding(ids.to(id_dtype), table), rows)
    part = embedding_triton.embedding(ids.to(id_dtype) + 9, table, first_id=9)
    assert torch.equal(part, rows)
