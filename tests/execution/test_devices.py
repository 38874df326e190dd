"""Ranks on their threads: one result a step, failures that leave nobody waiting, and recovery."""

import asyncio
import threading
from dataclasses import dataclass

import pytest
import torch

from actorllm.errors import DeviceError, DeviceHung, DeviceLost
from actorllm.execution.device_thread import DeviceThread
from actorllm.execution.devices import Devices
from actorllm.layers.collectives import ThreadRanks
from actorllm.messages import Step, StepDone, pack

CPU = torch.device("cpu")


@dataclass
class Done:
    """A step that needs no waiting for."""

    result: StepDone

    def read(self) -> StepDone:
        return self.result


class SumRunner:
    """Two collectives a step; the result is the sum of what all ranks put in. `fault` may raise in between."""

    def __init__(self, rank: int, collectives: ThreadRanks | None = None) -> None:
        self.rank = rank
        self.collectives = collectives
        self.log: list[int | str] = []
        self.fault = lambda number: None

    def reset(self) -> None:
        self.log.append("reset")

    def forward(self, step: Step) -> StepDone:
        self.log.append(step.number)
        value = torch.tensor([self.rank + step.number])
        for _ in range(2):
            self.fault(step.number)
            if self.collectives is not None:
                value = self.collectives.all_reduce(value)
        return StepDone(epoch=step.epoch, number=step.number, sampled=pack(value.tolist()))

    def sample(self, forwarded: StepDone, *, allowed: object = None) -> "Done":
        return Done(forwarded)


def two_ranks() -> tuple[Devices, list[SumRunner]]:
    ranks = ThreadRanks.group(2, timeout=20)
    runners = [SumRunner(rank, collectives) for rank, collectives in enumerate(ranks)]
    threads = [DeviceThread(f"rank {rank}", CPU, num_threads=1) for rank in range(2)]
    return Devices(threads, runners, ranks=ranks), runners


def one_rank() -> tuple[Devices, SumRunner]:
    runner = SumRunner(0)
    return Devices([DeviceThread("rank 0", CPU)], [runner]), runner


@pytest.fixture
def step(new_steps):
    def build(epoch: int, number: int) -> Step:
        return new_steps(epoch=epoch, number=number - 1).step()

    return build


async def finish(devices: Devices, step: Step) -> StepDone:
    future = asyncio.get_running_loop().create_future()
    devices.run(step, lambda done, error: future.set_exception(error) if error else future.set_result(done))
    return await future


async def test_all_ranks_compute_a_step_and_one_result_comes_back(step) -> None:
    devices, _ = two_ranks()
    done = await asyncio.gather(*(finish(devices, step(1, number)) for number in (1, 2)))
    # (n + n + 1) after the first reduction, twice that after the second
    assert [(d.number, d.sampled) for d in done] == [(1, pack([6])), (2, pack([10]))]
    assert await devices.close()


@pytest.mark.parametrize("broken", [0, 1])
async def test_a_rank_that_raises_breaks_the_others_off(step, broken: int) -> None:
    devices, runners = two_ranks()

    def fault(number: int) -> None:
        if number == 1:
            raise ValueError("no such shape")

    runners[broken].fault = fault
    first, second = await asyncio.gather(finish(devices, step(1, 1)), finish(devices, step(1, 2)), return_exceptions=True)
    assert isinstance(first, DeviceError) and "no such shape" in str(first)
    assert isinstance(second, DeviceError), "what is queued behind is not run"
    await devices.recover(5)
    assert (await finish(devices, step(2, 4))).sampled == pack([18])
    assert all(runner.log[-2:] == ["reset", 4] for runner in runners)
    assert await devices.close()


async def test_a_larger_epoch_resets_once(step) -> None:
    devices, runner = one_rank()
    for epoch, number in ((1, 1), (1, 2), (3, 1), (3, 2)):
        await finish(devices, step(epoch, number))
    assert runner.log == ["reset", 1, 2, "reset", 1, 2]
    assert devices.epoch == 3
    await devices.close()


async def test_a_lost_device_is_never_recovered(step) -> None:
    devices, runner = one_rank()

    def fault(number: int) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    runner.fault = fault
    with pytest.raises(DeviceLost, match="restart the process"):
        await finish(devices, step(1, 1))
    with pytest.raises(DeviceLost):
        await devices.recover(5)
    await devices.close()


async def test_a_step_that_never_ends_is_hung_and_left_behind(step) -> None:
    devices, runner = one_rank()
    release = threading.Event()
    runner.fault = lambda number: release.wait() and None
    devices.run(step(1, 1), lambda done, error: None)
    with pytest.raises(DeviceHung, match="step_timeout"):
        await devices.recover(0.05)
    assert isinstance(devices.fatal, DeviceHung)
    assert not await devices.close(timeout=0.05)
    release.set()
