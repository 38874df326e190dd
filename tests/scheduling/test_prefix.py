"""Prompts that begin alike share what is computed, and nothing else changes by that."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm.cache.sizing import GroupSize
from actorllm.messages import pack, unpack
from actorllm.scheduling import residency
from actorllm.scheduling.prefix import PrefixKey
from actorllm.settings import SchedulingSettings
from actorllm.testing.drive import Drive

ids = st.lists(st.integers(0, 2), max_size=40)
COMMON = list(range(1, 41))


def new_drive(*groups: GroupSize, **fields) -> Drive:
    return Drive(SchedulingSettings(**{"max_step_tokens": 64, **fields}), groups or (GroupSize("full", 400),), context=200)


def computed(drive: Drive) -> list[int]:
    """The tokens of each step."""
    return [sum(unpack(step.query_lens)) for step in drive.steps]


def check_texts(drive: Drive) -> None:
    for (request_id, choice), received in drive.choices.items():
        assert received.ids == drive.expected(request_id, choice)
    assert len(drive.table) == 0 and not any(drive.scheduler.slots_in_use)


@given(ids, ids, st.sampled_from(["", "a"]))
def test_the_common_length_of_two_keys(first: list[int], second: list[int], namespace: str) -> None:
    expected = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    got = PrefixKey("", pack(first)).common_len(PrefixKey(namespace, pack(second)))
    assert got == (0 if namespace else expected)


def test_a_prompt_begins_with_what_a_running_one_has() -> None:
    drive = new_drive()
    drive.add("a", [*COMMON, 77], max_tokens=9)
    drive.round()
    drive.add("b", [*COMMON, 78, 79], max_tokens=3)
    drive.add("c", COMMON, max_tokens=3)  # all of it is there: its last token is computed again, to sample from
    drive.round()
    assert computed(drive)[:2] == [41, 1 + 2 + 1]
    assert drive.scheduler.slots_in_use == (42 + 2 + 1,)
    outputs = drive.take()
    drive.run()
    check_texts(drive)
    assert outputs is None or {opened.num_cached for opened in outputs.opened} <= {0, 39, 40}


@pytest.mark.parametrize("other", [{"namespace": "b"}, {"key_ids": pack(range(500, 541))}])
def test_another_namespace_or_other_keys_share_nothing(other: dict) -> None:
    drive = new_drive()
    drive.add("a", [*COMMON, 77], max_tokens=9)
    drive.round()
    drive.add("b", [*COMMON, 77], max_tokens=3, **other)
    drive.round()
    assert computed(drive)[:2] == [41, 1 + 41]
    drive.run()
    check_texts(drive)


def test_equal_keys_share_even_if_the_ids_are_not_looked_at() -> None:
    drive = new_drive()
    drive.add("a", COMMON, max_tokens=9, namespace="x", key_ids=pack(range(500, 540)))
    drive.round()
    drive.add("b", COMMON, max_tokens=3, namespace="x", key_ids=pack(range(500, 540)))
    drive.round()
    assert computed(drive)[:2] == [40, 1 + 1]
    drive.run()
    check_texts(drive)


def test_logprobs_of_a_prompt_are_computed_for_it() -> None:
    drive = new_drive()
    drive.add("a", COMMON, max_tokens=9)
    drive.round()
    drive.add("b", COMMON, max_tokens=3, prompt_logprobs=1)
    drive.round()
    assert computed(drive)[:2] == [40, 1 + 40]
    drive.run()
    check_texts(drive)


prompts = st.tuples(st.integers(0, 12), st.lists(st.integers(0, 1), min_size=1, max_size=8))


@settings(max_examples=300, deadline=None)
@given(
    requests=st.lists(st.tuples(prompts, st.integers(1, 8), st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=8),
    windows=st.sampled_from([(None,), (None, 3), (5,), (1, None)]),
    admission=st.sampled_from(["reserve", "optimistic"]),
    depth=st.sampled_from([1, 2]),
    max_step_tokens=st.integers(3, 30),
    aborted=st.sets(st.integers(0, 7)),
    crash=st.booleans(),
)
def test_sharing_changes_no_text_and_leaks_no_slot(requests, windows, admission, depth, max_step_tokens, aborted, crash) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residency, "MIN_SHARED", 1)
        groups = tuple(GroupSize(f"group{index}", 90, window) for index, window in enumerate(windows))
        drive = new_drive(*groups, admission=admission, depth=depth, max_step_tokens=max_step_tokens)
        for index, ((common, own), max_tokens, n, rounds) in enumerate(requests):
            drive.add(f"r{index}", [*range(common), *own], max_tokens=max_tokens, n=n)
            for _ in range(rounds):
                drive.round()
            if index in aborted:
                drive.scheduler.abort(f"r{index}")
            if crash and index == len(requests) // 2:
                drive.crash()
        drive.run()
        for (request_id, choice), received in drive.choices.items():
            expected = drive.expected(request_id, choice)
            assert received.ids == (expected[: len(received.ids)] if received.finish == "abort" else expected)
        assert len(drive.table) == 0 and not any(drive.scheduler.slots_in_use)
