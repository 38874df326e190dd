"""When decode steps are replayed, and when they are not: models that look at numbers, that differ, or that have states."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from actorllm.execution.runner import ResidentRunner, RunnerSizes
from actorllm.layers.batch import Batch
from actorllm_kernels.native import library
from tests.execution.recurrent import TABLE_VD, RecurrentLM
from tests.table_model import AttendingLayer, TableLM

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")

HIDDEN = TABLE_VD.shape[1]


class AttendingLM(TableLM):
    cache_groups = RecurrentLM.cache_groups[:1]


class Layer(nn.Module):
    """`change(x, batch)`."""

    def __init__(self, change: Callable[[Tensor, Batch], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        return self.change(x_TD, batch)


def runner(change: Callable[[Tensor, Batch], Tensor], *, replays_decode: bool = True) -> ResidentRunner:
    model = AttendingLM(TABLE_VD, AttendingLayer(HIDDEN), Layer(change), context_len=64)
    sizes = RunnerSizes(num_slots=(512,), max_running=8, context=64)
    device = ResidentRunner(model, sizes, dtype=torch.float32, device=torch.device("cpu"))
    if not replays_decode:
        device.decode = None
    return device


def decoded(device: ResidentRunner, steps, *, rows: tuple[int, ...] = (0, 1, 2), count: int = 12) -> list[bytes]:
    """The sampled ids of each step."""
    for row in rows:
        steps.open(row).feed(row, [3 + row, 1], to=[row])
    found = [device.run(steps.step()).sampled]
    for number in range(count):
        steps.decode(*rows[: 1 + number % len(rows)])
        found.append(device.run(steps.step()).sampled)
    return found


def plain(x_TD: Tensor, batch: Batch) -> Tensor:
    return x_TD * 1.5


def scaled_by_length(x_TD: Tensor, batch: Batch) -> Tensor:
    return x_TD * torch.tensor([[float(span.seq_len)] for span in batch.spans]).repeat_interleave(
        torch.tensor([span.query_len for span in batch.spans]), dim=0
    )


def test_the_third_step_of_a_size_is_the_first_replayed(new_steps) -> None:
    device = runner(plain)
    expected = decoded(runner(plain, replays_decode=False), new_steps())
    assert decoded(device, new_steps()) == expected
    assert device.decode is not None and device.decode.num_replays == 12 - 2 * 3


def test_a_new_epoch_records_anew(new_steps) -> None:
    """Its slot tables are other memory."""
    device = runner(plain)
    first = decoded(device, new_steps())
    device.reset()
    assert decoded(device, new_steps()) == first


def test_a_model_that_looks_at_lengths_is_computed_as_ever(new_steps) -> None:
    device = runner(scaled_by_length)
    assert decoded(device, new_steps()) == decoded(runner(scaled_by_length, replays_decode=False), new_steps())
    assert device.decode is not None and device.decode.num_replays == 0


def test_a_model_whose_replay_differs_is_told_and_computed_as_ever(new_steps, caplog: pytest.LogCaptureFixture) -> None:
    """A number that the recording cannot see, because nothing asks a tensor for it."""
    calls = {True: 0, False: 0}

    def counted(replays: bool) -> Callable[[Tensor, Batch], Tensor]:
        def change(x_TD: Tensor, batch: Batch) -> Tensor:
            calls[replays] += 1
            return x_TD * (1.0 + calls[replays])

        return change

    device = runner(counted(True))
    assert decoded(device, new_steps()) == decoded(runner(counted(False), replays_decode=False), new_steps())
    assert "differs from the step itself" in caplog.text
    assert calls[True] == calls[False] and device.decode is not None and device.decode.num_replays == 0


def test_a_model_with_states_is_computed_as_ever() -> None:
    """The first replay is compared with the step itself, and a state must not go on twice."""
    sizes = RunnerSizes(num_slots=(64,), max_running=2, context=64)
    device = ResidentRunner(RecurrentLM(), sizes, dtype=torch.float32, device=torch.device("cpu"))
    assert device.decode is None


def test_what_is_sampled_does_not_matter_to_a_recording(new_steps) -> None:
    """Logprobs of some rows bring more numbers with a step."""
    device, steps, plain_device, plain_steps = runner(plain), new_steps(), runner(plain, replays_decode=False), new_steps()
    for asked in (0, None, 2, None, None, 1):
        for each_device, each_steps in ((device, steps), (plain_device, plain_steps)):
            each_steps.close(0).close(1).open(0, logprobs=asked).open(1).feed(0, [3], to=[0]).feed(1, [5], to=[1])
            each_device.run(each_steps.step())
        for _ in range(3):
            got, expected = (
                each_device.run(each_steps.decode(0, 1).step())
                for each_device, each_steps in ((device, steps), (plain_device, plain_steps))
            )
            assert (got.sampled, got.logprobs) == (expected.sampled, expected.logprobs)
    assert device.decode is not None and device.decode.num_replays == 6 * 3 - 2
