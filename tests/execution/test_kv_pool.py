"""The cache's memory: every byte is accounted for, and a quantized one has room for nearly twice the tokens."""

import pytest
import torch

from actorllm.cache.sizing import slots_for_budget
from actorllm.execution.kv_pool import KVPool
from actorllm.models.contract import CacheBuffer, CacheGroup

CPU = torch.device("cpu")
GROUPS = (
    CacheGroup("full", (0, 2), (CacheBuffer("k", (2, 8)), CacheBuffer("v", (2, 6)))),
    CacheGroup("latent", (1,), (CacheBuffer("latent", (12,), parts=(8, 4)), CacheBuffer("places", (3,), is_exact=True)), window=4),
)


@pytest.mark.parametrize("kv_dtype", [None, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
def test_a_pool_takes_the_bytes_that_slots_are_counted_by(kv_dtype):
    pool = KVPool(GROUPS, (10, 7), dtype=torch.bfloat16, device=CPU, kv_dtype=kv_dtype)
    tokens = [group.bytes_per_token(torch.bfloat16, kv_dtype) for group in GROUPS]
    assert pool.num_bytes() == 10 * tokens[0] + 7 * tokens[1]
    assert tokens == ([2 * 2 * 28, 2 * 12 + 6] if kv_dtype in (None, torch.bfloat16) else [2 * (28 + 2 * 2 * 4), 12 + 2 * 4 + 6])


def test_states_are_never_quantized():
    group = CacheGroup("state", (0,), (CacheBuffer("state", (2, 8)),), is_state=True)
    pool = KVPool((group,), (), dtype=torch.float32, device=CPU, kv_dtype=torch.int8, num_rows=3)
    assert pool.num_bytes() == 3 * group.bytes_per_token(torch.float32, torch.int8) == 3 * 16 * 4


def test_every_head_and_every_part_has_a_scale_of_its_own():
    pool = KVPool(GROUPS, (10, 7), dtype=torch.float32, device=CPU, kv_dtype=torch.int8)
    k_scales, latent_scales = pool.scales(0, 2, "k"), pool.scales(1, 1, "latent")
    assert k_scales is not None and latent_scales is not None
    assert (k_scales.shape, k_scales.dtype, latent_scales.shape) == ((10, 2), torch.float32, (7, 2))
    assert (pool.buffer(0, 2, "k").dtype, pool.buffer(1, 1, "latent").dtype) == (torch.int8, torch.int8)


def test_halves_have_no_scales():
    pool = KVPool(GROUPS, (10, 7), dtype=torch.float32, device=CPU, kv_dtype=torch.bfloat16)
    assert pool.buffer(0, 2, "k").dtype == torch.bfloat16 and pool.scales(0, 2, "k") is None
    assert pool.buffer(1, 1, "places").dtype == torch.float32


def test_an_exact_buffer_stays_as_it_is_computed():
    pool = KVPool(GROUPS, (10, 7), dtype=torch.float32, device=CPU, kv_dtype=torch.int8)
    assert pool.buffer(1, 1, "places").dtype == torch.float32 and pool.scales(1, 1, "places") is None


@pytest.mark.parametrize(("shape", "parts"), [((8, 128), ()), ((576,), (512, 64))])
def test_the_same_bytes_hold_nearly_twice_the_tokens_of_bfloat16(shape, parts):
    group = CacheGroup("full", tuple(range(16)), (CacheBuffer("k", shape, parts), CacheBuffer("v", shape, parts)))
    slots = []
    for kv_dtype in (None, torch.int8):
        size = [("full", None, group.bytes_per_token(torch.bfloat16, kv_dtype))]
        slots += [each.num_slots for each in slots_for_budget(2**30, size, context=1024, max_step_tokens=512)]
    assert slots[1] >= 1.9 * slots[0]
