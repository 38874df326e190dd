"""States of requests beside slots of tokens: chunks, pauses, choices and rows taken again give the one-shot computation."""

import pytest
import torch

from actorllm.cache.sizing import GroupSize, slots_for_budget
from actorllm.errors import NotEnoughMemory
from actorllm.execution.runner import ResidentRunner, RunnerSizes
from actorllm.messages import unpack
from actorllm.settings import SchedulingSettings
from actorllm.testing.drive import Drive
from actorllm.testing.tiny import logits_in_chunks
from tests.execution.recurrent import VOCAB_SIZE, RecurrentLM, one_shot

NUM_ROWS, CONTEXT = 4, 100


def new_drive(num_slots: int = 400, **settings) -> Drive:
    """The real scheduler over the real runner."""
    groups = (GroupSize("full", num_slots), GroupSize("average", NUM_ROWS, is_state=True))
    settings = {"max_running": NUM_ROWS, "max_step_tokens": 8, **settings}
    drive = Drive(SchedulingSettings(**settings), groups, context=CONTEXT, vocab_size=VOCAB_SIZE)
    sizes = RunnerSizes(num_slots=(num_slots,), max_running=NUM_ROWS, context=CONTEXT)
    drive.device = ResidentRunner(RecurrentLM(), sizes, dtype=torch.float32, device=torch.device("cpu"))  # type: ignore[assignment]
    return drive


def check(drive: Drive, request_id: str, choice: int = 0) -> None:
    """Every token's logprob is the one that the whole sequence, computed at once, gives it."""
    received = drive.choices[request_id, choice]
    assert received.finish == "length"
    prompt = list(unpack(drive.admits[request_id].prompt_ids))
    expected_TV = one_shot(prompt + received.ids).log_softmax(-1)[len(prompt) - 1 : -1]
    expected_T = expected_TV.gather(1, torch.tensor(received.ids).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(torch.tensor(received.logprobs), expected_T, atol=2e-4, rtol=0)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("sizes", [(), (1, 1, 5), (7,)])
def test_chunks_carry_the_state_on(sizes: tuple[int, ...]) -> None:
    ids = prompt(20, seed=0)
    torch.testing.assert_close(logits_in_chunks(RecurrentLM(), ids, sizes=sizes), one_shot(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("depth", [1, 2])
def test_more_requests_than_rows(depth: int) -> None:
    """Rows are taken again, and prompts that begin alike are computed each for itself."""
    drive = new_drive(depth=depth)
    for number in range(7):
        ids = prompt(30, seed=9)[:20] + prompt(3 + number, seed=number)
        drive.add(str(number), ids, max_tokens=5 + number, logprobs=0)
    drive.run()
    for number in range(7):
        check(drive, str(number))


@pytest.mark.parametrize("depth", [1, 2])
def test_choices_go_on_from_a_copy(depth: int) -> None:
    drive = new_drive(depth=depth)
    drive.add("one", prompt(19, seed=1), n=3, max_tokens=12, logprobs=0)
    drive.add("other", prompt(11, seed=2), max_tokens=20, logprobs=0)
    drive.run()
    assert len({tuple(drive.ids("one", choice)) for choice in range(3)}) == 3
    for choice in range(3):
        check(drive, "one", choice)
    check(drive, "other")


@pytest.mark.parametrize("depth", [1, 2])
def test_a_paused_request_finds_its_state_again(depth: int) -> None:
    drive = new_drive(60, depth=depth, admission="optimistic")
    for number in range(4):
        drive.add(str(number), prompt(10, seed=number), max_tokens=20, logprobs=0)
    drive.run()
    assert drive.scheduler.num_pauses > 0
    for number in range(4):
        check(drive, str(number))


def test_states_take_their_part_of_the_memory_first() -> None:
    groups = [("full", None, 10)]
    (full,) = slots_for_budget(2000, groups, context=100, max_step_tokens=8, state_bytes=500)
    assert full.num_slots == 150
    with pytest.raises(NotEnoughMemory, match="at least 1500,"):
        slots_for_budget(1400, groups, context=100, max_step_tokens=8, state_bytes=500)
