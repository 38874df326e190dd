"""How sizes are cut over ranks."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorllm.errors import UnsupportedConfig
from actorllm.layers.linear import HeadSplit
from actorllm.layers.shard import Shard


@given(st.integers(1, 9), st.integers(0, 200), st.integers(1, 16))
def test_spans_cover_everything_once_at_whole_units(num_ranks, size, unit):
    spans = [Shard(rank, num_ranks).span(size, unit=unit) for rank in range(num_ranks)]
    assert spans == Shard(0, num_ranks).spans(size, unit=unit)
    assert spans[0][0] == 0 and spans[-1][1] == size
    assert all(left[1] == right[0] for left, right in pairwise(spans))
    assert all(start % unit == 0 or start == size for start, _ in spans)
    units = [-(-(end - start) // unit) for start, end in spans]
    assert max(units) - min(units) <= 1


def splits(num_heads: int, num_kv_heads: int, num_ranks: int) -> list[HeadSplit]:
    return [HeadSplit.of(num_heads, num_kv_heads, head_dim=8, shard=Shard(rank, num_ranks)) for rank in range(num_ranks)]


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "num_ranks"), [(8, 8, 2), (8, 2, 2), (6, 3, 2), (8, 2, 4), (8, 1, 4), (7, 1, 3), (5, 5, 3), (4, 4, 1)]
)
def test_every_query_head_is_with_its_key_head(num_heads, num_kv_heads, num_ranks):
    owned = []
    for split in splits(num_heads, num_kv_heads, num_ranks):
        assert split.num_local_heads % split.num_local_kv_heads == 0
        local_group = split.num_local_heads // split.num_local_kv_heads
        for local, head in enumerate(range(*split.q_heads)):
            assert split.kv_heads[0] + local // local_group == head // (num_heads // num_kv_heads)
            owned.append(head)
    assert sorted(owned) == list(range(num_heads))


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "num_ranks"), [(6, 4, 1), (8, 2, 3), (8, 3, 1), (4, 2, 8), (4, 1, 5)])
def test_heads_that_cannot_be_split_are_refused(num_heads, num_kv_heads, num_ranks):
    with pytest.raises(UnsupportedConfig, match="heads"):
        splits(num_heads, num_kv_heads, num_ranks)
