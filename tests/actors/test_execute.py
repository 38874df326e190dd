"""The execute actor under a real supervisor, with the echo model on a real device thread."""

import asyncio
import threading
from collections.abc import Callable

import msgspec
import pytest
import torch

from actorllm.actors.execute import ExecuteActor
from actorllm.errors import DeviceError, DeviceHung, DeviceLost
from actorllm.execution.device_thread import DeviceThread
from actorllm.execution.devices import Devices
from actorllm.execution.runner import ResidentRunner, RunnerSizes
from actorllm.layers.shard import Shard
from actorllm.messages import RowOpen, RowSampling, Step, StepDone, pack
from actorllm.runtime.supervisor import Supervisor
from actorllm_echo import EchoConfig, EchoForCausalLM

CPU = torch.device("cpu")
GREEDY = RowSampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, {}, 0, None, 0, ())


class FaultyRunner(ResidentRunner):
    """Calls `fault(step)` before each step."""

    fault: Callable[[Step], object] = staticmethod(lambda step: None)

    def forward(self, step: Step):
        self.fault(step)
        return super().forward(step)


class Bench:
    """Devices with one echo rank, and what the actor delivered."""

    def __init__(self) -> None:
        model = EchoForCausalLM(EchoConfig(vocab_size=32, context_len=64, num_layers=1), Shard())
        sizes = RunnerSizes(num_slots=(64,), max_running=4, context=64)
        self.runner = FaultyRunner(model, sizes, dtype=torch.float32, device=CPU)
        self.devices = Devices([DeviceThread("rank 0", CPU, num_threads=1)], [self.runner])
        self.delivered: asyncio.Queue[StepDone] = asyncio.Queue()

    def actor(self, step_timeout: float = 30.0) -> ExecuteActor:
        return ExecuteActor(self.devices, deliver=self.delivered.put_nowait, step_timeout=step_timeout)


def first(epoch: int, token: int) -> Step:
    """A row opens with a prompt of one token."""
    step = decode(epoch, 1, 0)
    opened = (RowOpen(0, GREEDY, b"", b"", (0,), (b"",)),)
    return msgspec.structs.replace(step, opened=opened, token_ids=pack([token]))


def decode(epoch: int, number: int, position: int) -> Step:
    """The row's next token."""
    one = pack([0])
    return Step(
        epoch=epoch, number=number, closed=(), opened=(), rows=one, query_lens=pack([1]), seq_lens=pack([position + 1]),
        token_ids=pack([-1]), positions=pack([position]), write_slots=(pack([position]),), sample_rows=one,
        sample_to=one, sample_positions=pack([position]),
    )  # fmt: skip


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    bench.runner.fault = lambda step: None
    await bench.devices.close()


@pytest.mark.parametrize("encode", [True, False])
async def test_steps_are_answered_in_order_without_waiting_for_each_other(bench: Bench, encode: bool) -> None:
    async with Supervisor("test", encode=encode) as supervisor:
        execute = await supervisor.start("execute", bench.actor, capacity=4)
        await execute.send(first(1, 10))
        await execute.send(decode(1, 2, 1))
        await execute.send(decode(1, 3, 2))
        done = [await bench.delivered.get() for _ in range(3)]
    assert [(d.number, d.sampled) for d in done] == [(1, pack([11])), (2, pack([12])), (3, pack([13]))]


async def test_a_step_that_raises_restarts_the_actor_and_the_next_epoch_works(bench: Bench) -> None:
    def fault(step: Step) -> None:
        if (step.epoch, step.number) == (1, 2):
            raise ValueError("broken on purpose")

    bench.runner.fault = fault
    crashed = asyncio.Event()

    class Watched(ExecuteActor):
        async def stopped(self, error: BaseException | None) -> None:
            await super().stopped(error)
            if isinstance(error, DeviceError):
                assert "broken on purpose" in str(error)
                crashed.set()

    def factory() -> Watched:
        return Watched(bench.devices, deliver=bench.delivered.put_nowait, step_timeout=30.0)

    async with Supervisor("test") as supervisor:
        execute = await supervisor.start("execute", factory, capacity=4)
        await execute.send(first(1, 10))
        await execute.send(decode(1, 2, 1))
        await crashed.wait()
        await execute.send(decode(1, 3, 2))  # a leftover of the old epoch
        await execute.send(first(2, 20))
        done = [await bench.delivered.get() for _ in range(2)]
        assert supervisor.num_restarts == 1
    assert [(d.epoch, d.sampled) for d in done] == [(1, pack([11])), (2, pack([21]))]
    assert bench.delivered.empty()


async def test_results_of_a_dead_incarnation_are_dropped(bench: Bench) -> None:
    release, entered = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def fault(step: Step) -> None:
        loop.call_soon_threadsafe(entered.set)
        release.wait(5)

    bench.runner.fault = fault
    actor = bench.actor()
    actor.incarnation = 1
    await actor.receive(first(1, 10))
    await entered.wait()
    await actor.stopped(None)
    release.set()
    successor = bench.actor()
    await successor.started()
    assert bench.delivered.empty()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (lambda step, release: release.wait(20), DeviceHung),
        (lambda step, release: torch._assert(False, "CUDA error: device-side assert triggered"), DeviceLost),
    ],
)
async def test_a_device_that_is_lost_or_hangs_is_fatal(fault, kind) -> None:
    bench, release = Bench(), threading.Event()
    bench.runner.fault = lambda step: fault(step, release)

    class Deaf(ExecuteActor):
        ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

        async def stopped(self, error: BaseException | None) -> None:
            await super().stopped(error)
            self.ended.set_result(error)

    with pytest.raises(Exception) as caught:
        async with Supervisor("test", restarts=0) as supervisor:
            execute = await supervisor.start(
                "execute", lambda: Deaf(bench.devices, deliver=bench.delivered.put_nowait, step_timeout=0.1), capacity=4
            )
            await execute.send(first(1, 10))
            await asyncio.sleep(20)
    assert caught.value is not None
    assert isinstance(await Deaf.ended, kind)
    assert isinstance(bench.devices.fatal, kind)
    release.set()
    assert await bench.devices.close()
