"""What becomes of requests: refusals, ends, outputs, deadlines, recovery."""

from typing import get_args, get_type_hints

import pytest

from actorllm.cache.sizing import GroupSize
from actorllm.errors import InvalidRequest, PromptTooLong, QueueFull
from actorllm.messages import RowSampling, unpack, unpack_floats
from actorllm.scheduling.admission import ADMISSIONS
from actorllm.scheduling.policy import POLICIES
from actorllm.settings import SchedulingSettings
from actorllm.testing.drive import Drive

FULL = GroupSize("full", 200)


def new_drive(*groups: GroupSize, context: int = 100, next_token=None, **fields) -> Drive:
    settings = SchedulingSettings(**{"max_step_tokens": 16, **fields})
    return Drive(settings, groups or (FULL,), context=context, next_token=next_token)


# --- refusals ---


def test_a_prompt_that_leaves_no_room_for_a_token_is_too_long():
    drive = new_drive(context=10)
    with pytest.raises(PromptTooLong, match=r"10 tokens.*context is 10.*at most 9"):
        drive.add("a", range(10))
    drive.add("b", range(9))
    drive.run()
    assert len(drive.ids("b")) == 1 and drive.choices["b", 0].finish == "length"


def test_an_empty_prompt_is_refused():
    with pytest.raises(InvalidRequest, match="no tokens"):
        new_drive().add("a", [])


def test_a_full_queue_is_refused_until_someone_runs():
    drive = new_drive(max_waiting=2, max_running=1)
    for name in "abc":
        drive.add(name, [1], max_tokens=3)
    with pytest.raises(QueueFull, match="2 requests wait"):
        drive.add("d", [1], max_tokens=3)
    drive.run()
    drive.add("d", [1], max_tokens=3)


def test_whoever_fits_the_device_does_not_count_as_waiting():
    drive = new_drive(max_waiting=1, max_running=4)
    for name in "abcde":  # in one burst: nothing has been planned yet
        drive.add(name, [1], max_tokens=3)
    assert (drive.scheduler.num_running, drive.scheduler.num_waiting) == (4, 1)
    with pytest.raises(QueueFull, match="1 requests wait"):
        drive.add("f", [1], max_tokens=3)
    drive.run()
    assert [drive.ids(name) for name in "abcde"] == [drive.expected(name) for name in "abcde"]


def test_more_choices_than_rows_are_refused():
    with pytest.raises(InvalidRequest, match="n is 5, but at most 4"):
        new_drive(max_running=4).add("a", [1], n=5)


@pytest.mark.parametrize("admission", ["reserve", "optimistic"])
def test_a_request_that_can_never_fit_the_memory_is_refused(admission):
    drive = new_drive(GroupSize("tiny", 8), admission=admission)
    with pytest.raises(InvalidRequest, match=r"'tiny' has 8.*--kv-memory") as caught:
        drive.add("a", range(9), max_tokens=1)
    assert caught.value.param == "prompt"
    with pytest.raises(InvalidRequest, match="need 9 token slots") as caught:
        drive.add("a", range(4), max_tokens=6)
    assert caught.value.param == "max_tokens"
    drive.add("a", range(4), max_tokens=5)
    drive.run()
    assert drive.ids("a") == drive.expected("a")


def test_a_running_id_is_refused_and_may_be_used_again_later():
    drive = new_drive()
    drive.add("a", [1], max_tokens=2)
    with pytest.raises(InvalidRequest, match="'a' is running already"):
        drive.scheduler.add(drive.admits["a"], drive.now)
    drive.run()
    drive.scheduler.add(drive.admits["a"], drive.now)


# --- ends ---


def test_without_max_tokens_the_output_goes_up_to_the_context_or_the_usual_length():
    drive = new_drive(context=12)
    drive.add("a", range(8))
    drive.add("b", range(8), usual_tokens=50)
    drive.add("c", range(8), usual_tokens=3)
    drive.run()
    assert [len(drive.ids(name)) for name in "abc"] == [4, 4, 3]
    assert {drive.choices[name, 0].finish for name in "abc"} == {"length"}


def test_more_tokens_than_the_context_has_room_for_are_refused():
    drive = new_drive(context=12)
    with pytest.raises(PromptTooLong, match=r"8 tokens and max_tokens is 5, together 13, .* 12 tokens: .* at most 4") as caught:
        drive.add("a", range(8), max_tokens=5)
    assert caught.value.param == "max_tokens"
    with pytest.raises(InvalidRequest, match=r"min_tokens is 5, but at most 4") as caught:
        drive.add("a", range(8), min_tokens=5)
    assert caught.value.param == "min_tokens"
    drive.add("a", range(8), max_tokens=4, min_tokens=4)
    drive.run()
    assert len(drive.ids("a")) == 4


def test_top_k_of_minus_one_is_off():
    drive = new_drive()
    drive.add("a", [1], max_tokens=1, top_k=-1)
    step = drive.launch()
    assert step is not None and step.opened[0].sampling.top_k == 0


@pytest.mark.parametrize("ends", [{"eos_ids": (5,)}, {"stop_token_ids": (5,)}])
def test_a_stop_token_ends_the_output_and_is_its_last_id(ends):
    drive = new_drive(next_token=lambda state, position, sampling: 5 if position == 3 else 9)
    drive.add("a", [1], max_tokens=8, **ends)
    drive.run()
    received = drive.choices["a", 0]
    assert (received.ids, received.finish, received.is_stop_token) == ([9, 9, 9, 5], "stop", True)


def test_ignore_eos_goes_on():
    drive = new_drive(next_token=lambda state, position, sampling: 5)
    drive.add("a", [1], max_tokens=4, ignore_eos=True, eos_ids=(5,))
    drive.run()
    received = drive.choices["a", 0]
    assert (received.ids, received.finish, received.is_stop_token) == ([5] * 4, "length", False)


def test_end_ids_are_banned_below_min_tokens():
    drive = new_drive()
    drive.add("a", [1], max_tokens=4, min_tokens=2, stop_token_ids=(7,), eos_ids=(5,))
    drive.add("b", [1], max_tokens=4, stop_token_ids=(7,), eos_ids=(5,))
    step = drive.launch()
    assert step is not None
    assert [opened.sampling.banned_ids for opened in step.opened] == [(5, 7), ()]


def test_no_tokens_wanted_ends_at_once_without_a_step():
    drive = new_drive(max_waiting=0)
    drive.add("a", [1, 2], max_tokens=0, n=2)
    drive.run()
    assert [drive.choices["a", choice].finish for choice in (0, 1)] == ["length", "length"]
    assert not drive.steps and drive.finished["a"].scheduled is None


def test_a_row_without_finite_logits_fails_alone():
    def next_token(state: int, position: int, sampling: RowSampling) -> int:
        return -1 if sampling.seed == 13 and position == 2 else 8

    drive = new_drive(depth=2, next_token=next_token)
    drive.add("a", [1], n=2, seed=12, max_tokens=4)
    drive.run()
    good, bad = drive.choices["a", 0], drive.choices["a", 1]
    assert (good.ids, good.finish) == ([8] * 4, "length")
    assert bad.ids == [8, 8] and bad.failure is not None and bad.failure.kind == "RequestFailed"
    assert drive.scheduler.slots_in_use == (0,)


def test_an_abort_ends_every_choice_and_hands_out_what_was_sampled():
    drive = new_drive()
    drive.add("a", [1], n=2, max_tokens=9)
    drive.round()
    drive.scheduler.abort("a")
    drive.scheduler.abort("unknown")
    drive.run()
    for choice in (0, 1):
        received = drive.choices["a", choice]
        assert received.ids == drive.expected("a", choice)[:1] and received.finish == "abort"
        assert received.failure is not None and received.failure.kind == "RequestAborted"
    assert drive.finished["a"].finish == "abort"


def test_a_stop_string_truncates_without_another_output():
    drive = new_drive(depth=2)
    drive.add("a", [1], n=2, max_tokens=9)
    for _ in range(5):
        drive.round()
    assert len(drive.ids("a", 1)) > 2
    drive.stop("a", 1, 1)
    drive.run()
    assert drive.ids("a", 0) == drive.expected("a", 0)
    assert drive.ids("a", 1) == drive.expected("a", 1)[:2] and drive.choices["a", 1].finish is None
    assert drive.finished["a"].output_len == 9 + 2


# --- outputs ---


@pytest.mark.parametrize("depth", [1, 2])
def test_prompt_logprobs_gather_over_chunks(depth):
    drive = new_drive(depth=depth, max_step_tokens=4)
    drive.add("a", range(10, 23), max_tokens=2, prompt_logprobs=2, n=2)
    drive.add("b", [77], max_tokens=1, prompt_logprobs=3)
    drive.add("c", range(30, 39), max_tokens=0, prompt_logprobs=0)
    drive.run()
    scores = drive.scores["a"].scores
    assert list(unpack_floats(scores.chosen)) == [-token_id for token_id in range(11, 23)]
    assert list(unpack(scores.ids)) == [rival for token_id in range(11, 23) for rival in (token_id, token_id + 1)]
    assert (drive.scores["b"].scores.width, drive.scores["b"].scores.chosen) == (3, b"")
    assert len(drive.scores["c"].scores.chosen) == 8 * 4
    assert drive.choices["c", 0].finish == "length" and drive.ids("c") == []


def test_prompt_logprobs_come_once_although_the_prompt_is_recomputed():
    drive = new_drive(max_step_tokens=4)
    drive.add("a", range(10, 23), max_tokens=3, prompt_logprobs=0)
    drive.round()
    drive.crash()  # in the middle of the prompt
    for _ in range(5):
        drive.round()
    drive.crash()  # in the middle of the output
    drive.run()
    assert list(unpack_floats(drive.scores["a"].scores.chosen)) == [-token_id for token_id in range(11, 23)]
    assert drive.ids("a") == drive.expected("a")


def test_logprobs_travel_with_their_tokens():
    drive = new_drive()
    drive.add("a", [1], max_tokens=6, logprobs=2)
    for _ in range(4):
        drive.launch()
        drive.deliver()
    outputs = drive.take()
    assert outputs is not None and len(outputs.rows) == 1 and outputs.rows[0].logprobs is not None
    assert outputs.rows[0].logprobs.width == 2
    drive.run()
    assert drive.choices["a", 0].logprobs == [-token_id for token_id in drive.expected("a")]


def test_a_request_is_announced_with_what_detokenize_needs():
    drive = new_drive()
    drive.add("a", [4, 5], n=2, max_tokens=3, stop=("end",), min_tokens=1, skip_special_tokens=False)
    drive.run()
    opened = drive.opened["a"]
    assert list(unpack(opened.prompt_ids)) == [4, 5]
    assert (opened.n, opened.stop, opened.min_tokens, opened.skip_special_tokens) == (2, ("end",), 1, False)


def test_nothing_new_is_no_message():
    drive = new_drive()
    assert drive.scheduler.take_outputs() is None
    drive.add("a", [1], max_tokens=3)
    assert drive.scheduler.take_outputs() is None


def test_each_choice_has_its_own_seed_and_prompts_travel_only_for_penalties():
    drive = new_drive()
    drive.add("a", [1, 2], n=3, seed=2**63 - 2, max_tokens=1)
    drive.add("b", [1, 2], repetition_penalty=1.5, max_tokens=1)
    step = drive.launch()
    assert step is not None
    plain, penalized, *siblings = sorted(step.opened, key=lambda opened: opened.row != 0 and any(opened.slots))
    seeds = [opened.sampling.seed for opened in (plain, *siblings)]
    assert seeds == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert plain.prompt_ids == b"" and list(unpack(penalized.prompt_ids)) == [1, 2]


# --- deadlines ---


def test_a_request_that_waits_too_long_is_a_queue_timeout():
    drive = new_drive(max_running=1)
    drive.add("a", [1], max_tokens=50, wait_deadline=5.0, run_deadline=50.0)
    drive.add("b", [1], max_tokens=50, wait_deadline=5.0, run_deadline=50.0)
    assert drive.scheduler.next_deadline() == 5.0
    drive.round()
    drive.now = 5.0
    drive.scheduler.expire(drive.now)
    drive.take()
    assert drive.choices["a", 0].finish is None
    failure = drive.choices["b", 0].failure
    assert failure is not None and failure.kind == "QueueTimeout"
    assert drive.scheduler.next_deadline() == 50.0


def test_a_request_that_runs_too_long_is_a_request_timeout():
    drive = new_drive()
    drive.add("a", [1], n=2, max_tokens=50, run_deadline=9.0)
    drive.round()
    drive.now = 9.5
    drive.scheduler.expire(drive.now)
    drive.run()
    for choice in (0, 1):
        received = drive.choices["a", choice]
        assert received.finish == "error" and received.failure is not None
        assert received.failure.kind == "RequestTimeout"
    assert drive.finished["a"].finish == "error" and drive.scheduler.next_deadline() is None


def test_deadlines_of_ended_requests_are_forgotten():
    drive = new_drive()
    for index in range(300):
        drive.add(f"r{index}", [1], max_tokens=1, run_deadline=1000.0 + index)
        drive.run()
    assert drive.scheduler.next_deadline() is None


# --- recovery ---


@pytest.mark.parametrize("depth", [1, 2])
def test_a_new_epoch_recomputes_and_goes_on_where_it_was(depth):
    drive = new_drive(depth=depth)
    drive.add("a", [1, 2, 3], n=2, seed=None, max_tokens=12)  # the seed must be drawn once
    drive.add("b", [4, 5], max_tokens=12, temperature=0.7)
    for _ in range(4):
        drive.round()
    before = drive.ids("a", 1).copy()
    num_steps = len(drive.steps)
    drive.crash()
    assert drive.scheduler.num_paused == 3 and drive.scheduler.num_waiting == 0
    drive.run()
    assert drive.ids("a", 1)[: len(before)] == before and len(drive.ids("a", 1)) == 12
    reopened = drive.steps[num_steps]
    assert (reopened.epoch, reopened.number) == (2, 1) and reopened.token_ids.find(b"\xff\xff\xff\xff") < 0
    assert len(drive.table) == 0 and drive.scheduler.slots_in_use == (0,)


def test_outputs_that_were_not_taken_survive_the_scheduler():
    drive = new_drive()
    drive.add("a", [1], max_tokens=3)
    drive.add("b", [2], max_tokens=9)
    for _ in range(3):
        drive.launch()
        drive.deliver()
    drive.crash()
    outputs = drive.take()
    assert outputs is not None and {opened.request_id for opened in outputs.opened} == {"a", "b"}
    assert drive.ids("a") == drive.expected("a") and drive.choices["a", 0].finish == "length"
    assert drive.ids("b") == drive.expected("b")[:3]
    assert set(drive.finished) == {"a"}


def test_a_result_of_an_older_epoch_is_dropped():
    drive = new_drive()
    drive.add("a", [1], max_tokens=3)
    drive.launch()
    drive.crash()  # delivers the late result
    assert drive.take() is None
    drive.run()
    assert drive.ids("a") == drive.expected("a")


# --- facts ---


def test_gauges_and_the_record_of_the_end():
    drive = new_drive(GroupSize("full", 40), GroupSize("window", 30, 2), max_running=1)
    drive.now = 3.0
    drive.add("a", [1, 2, 3], max_tokens=4)
    drive.add("b", [1, 2], max_tokens=4)
    drive.now = 7.0
    drive.round()
    scheduler = drive.scheduler
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_paused) == (1, 1, 0)
    assert scheduler.slots_in_use == (3, 1) and scheduler.num_slots == (40, 30)
    drive.run()
    record = drive.finished["a"]
    assert (record.prompt_len, record.output_len, record.finish) == (3, 4, "length")
    assert (record.arrived, record.scheduled) == (3.0, 7.0)


def test_every_setting_names_something_that_exists():
    hints = get_type_hints(SchedulingSettings)
    assert set(get_args(hints["policy"])) == set(POLICIES)
    assert set(get_args(hints["admission"])) == set(ADMISSIONS)
