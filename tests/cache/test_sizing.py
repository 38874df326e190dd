"""From bytes to slots: what is given is never exceeded, and one context always fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorllm.cache.sizing import GroupSize, slots_for_budget, slots_needed
from actorllm.errors import NotEnoughMemory


def test_one_full_group_takes_all_bytes():
    assert slots_for_budget(1050, [("full", None, 10)], context=100, max_step_tokens=8) == (GroupSize("full", 105),)


def test_full_and_window_groups_share_by_what_one_context_needs():
    groups = [("full", None, 10), ("window", 16, 30)]
    # one context of 100 needs 100 full slots and 16 + 4 behind the window: 1600 bytes
    sizes = slots_for_budget(3200, groups, context=100, max_step_tokens=4)
    assert sizes == (GroupSize("full", 200, None), GroupSize("window", 40, 16))


def test_a_window_wider_than_the_context_needs_no_more_than_the_context():
    assert slots_needed(100, 4096, 512) == 100
    assert slots_needed(100, None, 512) == 100
    assert slots_needed(100, 8, 16) == 24


def test_too_little_memory_names_the_numbers_and_the_mend():
    with pytest.raises(NotEnoughMemory) as caught:
        slots_for_budget(999, [("full", None, 10)], context=100, max_step_tokens=8)
    for part in ("999 bytes", "1000 bytes", "100 tokens", "--kv-memory", "--context"):
        assert part in caught.value.message


@given(
    num_bytes=st.integers(0, 10**7),
    groups=st.lists(st.tuples(st.none() | st.integers(1, 200), st.integers(1, 500)), min_size=1, max_size=4),
    context=st.integers(1, 300),
    max_step_tokens=st.integers(1, 64),
)
def test_the_budget_holds_and_one_context_fits(num_bytes, groups, context, max_step_tokens):
    named = [(f"group{index}", window, token_bytes) for index, (window, token_bytes) in enumerate(groups)]
    needs = [slots_needed(context, window, max_step_tokens) for _, window, _ in named]
    try:
        sizes = slots_for_budget(num_bytes, named, context=context, max_step_tokens=max_step_tokens)
    except NotEnoughMemory:
        assert sum(need * size for need, (_, _, size) in zip(needs, named, strict=True)) > num_bytes
        return
    assert sum(size.num_slots * bytes_ for size, (_, _, bytes_) in zip(sizes, named, strict=True)) <= num_bytes
    assert all(size.num_slots >= need for size, need in zip(sizes, needs, strict=True))
