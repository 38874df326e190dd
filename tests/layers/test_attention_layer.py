"""The attention layer writes its keys and values into the pool and reads all of them from there."""

import torch

from actorllm.layers.attention import Attention
from actorllm.models.contract import CacheBuffer, CacheGroup
from actorllm.testing.tiny import TinyCache

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


def test_chunks_equal_one_piece_with_and_without_a_window():
    q, k, v = qkv(12)
    for group, window in ((0, None), (1, 4)):
        layer = Attention(group, group=group, scale=0.5, window=window)
        whole = layer(q, k, v, TinyCache(GROUPS).batch([(0, range(12))]))
        cache, parts, start = TinyCache(GROUPS, seed=1), [], 0
        for size in (1, 5, 3, 1, 2):
            part = slice(start, start + size)
            parts.append(layer(q[part], k[part], v[part], cache.batch([(0, range(size))])))
            start += size
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=1e-5)


def test_all_layers_of_a_group_share_what_is_computed_once():
    cache = TinyCache((CacheGroup("full", (0, 1), GROUPS[0].buffers),))
    batch = cache.batch([(0, [1, 2])])
    for index in range(2):
        Attention(index, group=0, scale=1.0)(*qkv(2), batch)
        keys = batch.keys[0]
        assert batch.keys[0] is keys and len(batch.keys) == 1
