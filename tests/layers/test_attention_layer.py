"""The attention layer writes its keys and values into the pool and reads all of them from there."""

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from actorllm.layers.attention import Attention, Sinks, alibi_slopes
from actorllm.layers.linear import HeadSplit
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheBuffer, CacheGroup
from actorllm.testing.tiny import TinyCache
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module

GROUPS = tuple(
    CacheGroup(name, (layer,), (CacheBuffer("k", (2, 8)), CacheBuffer("v", (2, 8))), window)
    for layer, (name, window) in enumerate([("full", None), ("window", 4)])
)


def qkv(num_tokens: int):
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randn(num_tokens, 8, 8, generator=generator).split((4, 2, 2), dim=1)


def test_writes_the_slots_of_its_group_and_layer():
    cache = TinyCache(GROUPS)
    layer = Attention(1, group=1, scale=0.5, window=4)
    batch = cache.batch([(0, [1, 2, 3]), (2, [4])])
    q, k, v = qkv(4)
    layer(q, k, v, batch)
    assert torch.equal(cache.buffer(1, 1, "k")[batch.write_slots_T[1]], k)
    assert torch.equal(cache.buffer(1, 1, "v")[batch.write_slots_T[1]], v)
    assert cache.buffer(0, 0, "k").isnan().all()


@pytest.mark.parametrize(
    ("extras", "sinks"), [({}, None), ({"soft_cap": 2.0}, torch.ones(4)), ({"slopes": alibi_slopes(4)}, None)]
)
def test_chunks_equal_one_piece_with_and_without_a_window(extras, sinks):
    q, k, v = qkv(12)
    for group, window in ((0, None), (1, 4)):
        layer = Attention(group, group=group, scale=0.5, window=window, **extras)
        whole = layer(q, k, v, TinyCache(GROUPS).batch([(0, range(12))]), sinks_H=sinks)
        cache, parts, start = TinyCache(GROUPS, seed=1), [], 0
        for size in (1, 5, 3, 1, 2):
            part = slice(start, start + size)
            parts.append(layer(q[part], k[part], v[part], cache.batch([(0, range(size))]), sinks_H=sinks))
            start += size
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=1e-5)


def test_all_layers_of_a_group_share_what_is_computed_once():
    cache = TinyCache((CacheGroup("full", (0, 1), GROUPS[0].buffers),))
    batch = cache.batch([(0, [1, 2])])
    for index in range(2):
        Attention(index, group=0, scale=1.0)(*qkv(2), batch)
        keys = batch.keys[0]
        assert batch.keys[0] is keys and len(batch.keys) == 1


@pytest.mark.parametrize("num_heads", [1, 2, 3, 6, 8, 12, 32, 40, 71, 112])
def test_alibi_slopes_equal_the_published_ones(num_heads):
    """Two positions' biases differ by the slope."""
    biases = build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(torch.tensor(alibi_slopes(num_heads)), biases)


def test_ranks_with_their_slopes_and_sinks_equal_one():
    """Query heads, slopes and sinks split over ranks give the parts of the whole."""
    q, k, v = qkv(6)

    def attended(shard: Shard) -> torch.Tensor:
        split = HeadSplit.of(4, 2, head_dim=8, shard=shard)
        sinks = torch.nn.ModuleDict({"sinks": Sinks(split)})
        load_module(sinks, RandomWeights(std=1.0), "self_attn")
        heads, kv_heads = slice(*split.q_heads), slice(*split.kv_heads)
        layer = Attention(0, group=0, scale=0.5, slopes=alibi_slopes(4)[heads])
        cache = TinyCache([CacheGroup("full", (0,), tuple(CacheBuffer(name, (split.num_local_kv_heads, 8)) for name in "kv"))])
        batch = cache.batch([(0, range(6))])
        return layer(q[:, heads], k[:, kv_heads], v[:, kv_heads], batch, sinks_H=sinks["sinks"]())

    parts = [attended(Shard(rank, 2)) for rank in range(2)]
    torch.testing.assert_close(torch.cat(parts, dim=1), attended(Shard()))
