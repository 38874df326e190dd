"""What goes into steps: budgets, chunks, rows, shared prompts, pauses, slots."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm.cache.sizing import GroupSize
from actorllm.messages import Step, pack, unpack
from actorllm.settings import SchedulingSettings
from actorllm.testing.drive import Drive
from actorllm.testing.fake_device import FakeDevice, StepRefused

FULL = GroupSize("full", 200)


def new_drive(*groups: GroupSize, context: int = 100, **fields) -> Drive:
    return Drive(SchedulingSettings(**{"max_step_tokens": 16, **fields}), groups or (FULL,), context=context)


def check_texts(drive: Drive) -> None:
    """Everyone has ended as if alone, and nothing is left behind."""
    for (request_id, choice), received in drive.choices.items():
        assert received.ids == drive.expected(request_id, choice)
        assert received.finish in ("stop", "length")
    assert len(drive.table) == 0 and not any(drive.scheduler.slots_in_use)


def num_samples(drive: Drive) -> int:
    return sum(len(step.sample_rows) // 4 for step in drive.steps)


def query_lens(step: Step) -> list[int]:
    return list(unpack(step.query_lens))


def test_decode_rows_and_prefill_chunks_share_a_step_under_the_budget():
    drive = new_drive(max_step_tokens=8)
    drive.add("a", range(1, 4), max_tokens=6)
    drive.round()
    drive.add("b", range(10, 30), max_tokens=2)
    drive.run()
    assert query_lens(drive.steps[0]) == [3]
    assert query_lens(drive.steps[1]) == [1, 7]
    assert query_lens(drive.steps[3]) == [1, 6]
    check_texts(drive)


def test_several_prompts_fill_one_step_in_order_of_arrival():
    drive = new_drive(max_step_tokens=10)
    for name, length in (("a", 4), ("b", 4), ("c", 4)):
        drive.add(name, range(1, length + 1), max_tokens=1)
    step = drive.launch()
    assert step is not None and query_lens(step) == [4, 4, 2]
    drive.run()
    check_texts(drive)


def test_more_running_rows_than_budget_take_turns_by_order():
    drive = new_drive(max_step_tokens=2)
    for name in "abcd":
        drive.add(name, [1, 2], max_tokens=5)
    drive.run()
    check_texts(drive)


@pytest.mark.parametrize("depth", [1, 2])
def test_no_token_is_computed_beyond_a_known_length(depth):
    drive = new_drive(depth=depth)
    drive.add("a", [1, 2, 3], max_tokens=5)
    drive.add("b", [4, 5], max_tokens=1)
    drive.run()
    assert num_samples(drive) == 6
    check_texts(drive)


def test_at_depth_2_a_step_is_launched_before_the_last_ones_result():
    drive = new_drive(depth=2)
    drive.add("a", [1, 2, 3], max_tokens=5)
    first, second = drive.launch(), drive.launch()
    assert first is not None and second is not None and drive.launch() is None
    assert list(unpack(second.token_ids)) == [-1]
    assert list(unpack(second.sample_positions)) == [1]
    drive.run()
    check_texts(drive)


def test_at_depth_2_a_token_sampled_after_the_end_is_dropped():
    drive = new_drive(depth=2)
    drive.add("a", [1, 2, 3], max_tokens=50, seed=1)
    end = drive.expected("a")[4]
    drive.add("b", [1, 2, 3], max_tokens=50, seed=1, eos_ids=(end,))
    drive.run()
    received = drive.choices["b", 0]
    assert received.finish == "stop" and received.is_stop_token
    assert received.ids[-1] == end and drive.finished["b"].output_len == len(received.ids)
    assert num_samples(drive) == 50 + len(received.ids) + 1
    check_texts(drive)


def test_slots_of_a_finished_sequence_return_when_its_last_step_is_done():
    drive = new_drive(depth=2)
    drive.add("a", [1, 2, 3], max_tokens=50)
    drive.launch()
    drive.launch()
    drive.deliver()
    drive.scheduler.abort("a")
    drive.take()
    assert drive.scheduler.slots_in_use == (4,) and "a" in drive.table
    drive.deliver()
    assert drive.scheduler.slots_in_use == (0,) and len(drive.table) == 0


def test_a_row_is_used_again_only_after_it_was_closed():
    drive = new_drive(max_running=1)
    drive.add("a", [1], max_tokens=2)
    drive.add("b", [2], max_tokens=2)
    drive.run()
    opening = drive.steps[2]
    assert opening.closed == (0,) and [opened.row for opened in opening.opened] == [0]
    check_texts(drive)


@pytest.mark.parametrize("depth", [1, 2])
def test_choices_share_one_prefill(depth):
    drive = new_drive(GroupSize("full", 200), GroupSize("window", 200, 6), depth=depth, max_step_tokens=16)
    drive.add("a", range(1, 41), n=3, max_tokens=4)
    drive.run()
    fork = next(step for step in drive.steps if len(step.sample_rows))
    assert len(set(unpack(fork.sample_rows))) == 1 and len(set(unpack(fork.sample_to))) == 3
    siblings = fork.opened[-2:]
    for sibling in siblings:
        full, window = (len(unpack(slots)) for slots in sibling.slots)
        assert full == 40
        assert sibling.prefix_start[0] == 0 and sibling.prefix_start[1] == 40 - window > 0
    assert sum(len(step.token_ids) // 4 for step in drive.steps) == 40 + 3 * 3
    check_texts(drive)


def test_choices_need_all_their_rows_at_once():
    drive = new_drive(max_running=3)
    drive.add("a", [1], max_tokens=8)
    drive.add("b", [2], n=3, max_tokens=2)
    drive.round()
    assert (drive.scheduler.num_running, drive.scheduler.num_waiting) == (1, 1)
    drive.run()
    check_texts(drive)


def test_rows_kept_for_siblings_return_when_the_prompt_is_aborted():
    drive = new_drive(max_running=3, max_step_tokens=4)
    drive.add("a", range(1, 20), n=3, max_tokens=2)
    drive.round()
    drive.scheduler.abort("a")
    drive.add("b", [5, 6], n=3, max_tokens=2)
    drive.run()
    assert drive.ids("b", 2) == drive.expected("b", 2)
    assert drive.choices["b", 0].finish == "length"


def test_reserve_waits_until_final_lengths_fit():
    drive = new_drive(GroupSize("full", 20))
    drive.add("a", [1, 2, 3], max_tokens=10)  # 12 slots at its end
    drive.add("b", [4, 5, 6], max_tokens=10)
    drive.round()
    assert (drive.scheduler.num_running, drive.scheduler.num_waiting) == (1, 1)
    drive.run()
    assert drive.scheduler.num_pauses == 0
    check_texts(drive)


@pytest.mark.parametrize("depth", [1, 2])
def test_optimistic_pauses_the_last_and_resumes_it_by_recomputing(depth):
    drive = new_drive(GroupSize("full", 20), admission="optimistic", depth=depth)
    drive.add("a", [1, 2, 3], max_tokens=14)
    drive.add("b", [4, 5, 6], max_tokens=14)
    while not drive.scheduler.num_paused:
        assert drive.round()
    resumed = len(drive.ids("b"))
    drive.run()
    assert drive.scheduler.num_pauses == 1
    reopened = drive.steps[-1]
    for step in drive.steps:
        reopened = step if step.opened else reopened
    known = unpack(reopened.opened[0].output_ids)
    assert list(known) == drive.ids("b")[: len(known)] and len(known) >= resumed > 0
    assert query_lens(reopened)[-1] == 3 + len(known)
    check_texts(drive)


def test_while_slots_are_on_their_way_back_nobody_else_is_paused():
    drive = new_drive(GroupSize("full", 30), admission="optimistic", depth=2)
    for start in (1, 11, 21):
        drive.add(f"r{start}", range(start, start + 5), max_tokens=20)
    while not drive.scheduler.num_pauses:
        assert drive.round()
    assert (drive.scheduler.num_pauses, drive.scheduler.num_paused) == (1, 1)
    drive.run()
    check_texts(drive)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("window", [1, 2, 7])
def test_a_window_group_never_holds_more_than_window_and_step(depth, window):
    need = window + 8
    drive = new_drive(GroupSize("window", need, window), depth=depth, max_step_tokens=8)
    drive.add("a", range(1, 61), max_tokens=30)
    while drive.round():
        assert drive.scheduler.slots_in_use[0] <= need
    check_texts(drive)


def test_a_prompt_longer_than_the_pool_of_a_window_group_is_served():
    drive = new_drive(GroupSize("full", 100), GroupSize("window", 12, 4), max_step_tokens=8)
    drive.add("a", range(1, 61), max_tokens=30)
    drive.run()
    check_texts(drive)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=2, max_size=8),
    num_slots=st.integers(23, 40),
    depth=st.sampled_from((1, 2)),
    max_step_tokens=st.integers(1, 12),
)
def test_the_first_request_always_gets_on(sizes, num_slots, depth, max_step_tokens):
    drive = new_drive(GroupSize("full", num_slots), admission="optimistic", depth=depth, max_step_tokens=max_step_tokens)
    for index, (prompt_len, max_tokens) in enumerate(sizes):
        drive.add(f"r{index}", [100 * index + place for place in range(prompt_len)], max_tokens=max_tokens)
    names = [f"r{index}" for index in range(len(sizes))]
    for name, (prompt_len, max_tokens) in zip(names, sizes, strict=True):
        rounds = 0
        while drive.choices[name, 0].finish is None:
            assert drive.round()
            rounds += 1
            drive.take()
        # with everyone before it gone: its chunks, one step a token, and the steps that were under way already
        assert rounds <= -(-(prompt_len + max_tokens) // max_step_tokens) + max_tokens + 2 * depth
    drive.run()
    check_texts(drive)


def test_the_fake_device_refuses_a_slot_that_another_row_reads():
    drive = new_drive()
    drive.add("a", [1, 2, 3], max_tokens=5)
    drive.round()
    step = drive.launch()
    assert step is not None
    device = FakeDevice((FULL,), num_rows=64, max_step_tokens=16)
    device.run(drive.steps[0])
    stolen = msgspec.structs.replace(step, write_slots=(pack(unpack(drive.steps[0].write_slots[0])[:1]),))
    with pytest.raises(StepRefused, match="is written while a row reads it"):
        device.run(stolen)
