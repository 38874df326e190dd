"""The slot pool against a plain count of references."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorllm.cache.slots import SlotPool, SlotsExhausted


def test_a_fresh_pool_gives_every_slot_once():
    pool = SlotPool(5)
    assert sorted(pool.allocate(2) + pool.allocate(3)) == [0, 1, 2, 3, 4]
    assert (pool.num_free, pool.num_used) == (0, 5)


def test_a_short_pool_says_so_and_gives_nothing():
    pool = SlotPool(3)
    pool.allocate(2)
    with pytest.raises(SlotsExhausted, match="2 slots asked for, 1 of 3 are free"):
        pool.allocate(2)
    assert pool.num_free == 1


def test_a_shared_slot_is_free_after_its_last_release():
    pool = SlotPool(1)
    slots = pool.allocate(1)
    pool.share(slots)
    pool.release(slots)
    assert pool.num_free == 0
    pool.release(slots)
    assert pool.num_free == 1


def test_misuse_is_a_programmers_error():
    pool = SlotPool(2)
    with pytest.raises(AssertionError, match="cannot be shared"):
        pool.share([0])
    with pytest.raises(AssertionError, match="more often than taken"):
        pool.release([1])


@given(st.lists(st.tuples(st.sampled_from(("allocate", "share", "release")), st.integers(0, 6)), max_size=60))
def test_references_are_counted(actions):
    pool, model = SlotPool(8), Counter()
    for action, count in actions:
        held = sorted(+model)[:count]
        if action == "allocate":
            if count > pool.num_free:
                continue
            new = pool.allocate(count)
            assert len(set(new)) == count and not any(model[slot] for slot in new)
            model.update(new)
        elif action == "share":
            pool.share(held)
            model.update(held)
        else:
            pool.release(held)
            model.subtract(held)
        assert pool.num_used == len(+model)
        assert pool.num_free == 8 - pool.num_used
