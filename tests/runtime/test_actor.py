"""An actor's contract: answers, lanes, deadlines, settling, concurrency; with encoded and with plain messages."""

import asyncio

import pytest
from msgspec import Struct

from actorllm.runtime.actor import Actor
from actorllm.runtime.faults import ActorCrashed, ActorStopped, ContractViolation
from actorllm.runtime.supervisor import Supervisor

pytestmark = pytest.mark.usefixtures("no_task_left")


class Echo(Struct, frozen=True, tag=True):
    value: int


class Fail(Struct, frozen=True, tag=True):
    kind: str


class Urgent(Struct, frozen=True, tag=True):
    value: int


class Hold(Struct, frozen=True, tag=True):
    value: int


class Stranger(Struct, frozen=True, tag=True):
    pass


class Refused(Exception):
    pass


class Worker(Actor[Echo | Fail | Urgent | Hold]):
    """Remembers what it was told in `log`, which outlives it; `Hold` waits for the `gate`."""

    urgent = (Urgent,)
    rejections = (Refused,)

    def __init__(self, log: list, gate: asyncio.Event | None = None) -> None:
        self.log = log
        self.gate = gate or asyncio.Event()

    async def started(self) -> None:
        self.log.append(("started", self.incarnation))

    async def receive(self, message: Echo | Fail | Urgent | Hold) -> int:
        self.log.append(message)
        match message:
            case Fail("refused"):
                raise Refused("no")
            case Fail("stray"):
                lost = asyncio.get_running_loop().create_future()
                lost.cancel()
                await lost
            case Fail():
                raise ValueError("broken")
            case Hold():
                await self.gate.wait()
        return message.value

    async def settled(self) -> None:
        self.log.append("settled")

    async def stopped(self, error: BaseException | None) -> None:
        self.log.append(("stopped", type(error)))


class Crowd(Worker):
    concurrency = 3


async def turns(count: int = 10) -> None:
    """Let the other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_ask_is_answered_and_the_life_is_in_order(encode, recorder):
    log: list = []
    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker(log), capacity=4)
        assert log == [("started", 1)]
        assert await ref.ask(Echo(7)) == 7
    assert log == [("started", 1), Echo(7), "settled", ("stopped", type(None))]
    assert recorder.facts == [("handled", "worker", Echo), ("stopped", "worker", None)]


async def test_rejection_answers_one_message_only(encode, recorder):
    log: list = []
    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker(log), capacity=4)
        with pytest.raises(Refused, match="no"):
            await ref.ask(Fail("refused"))
        await ref.send(Fail("refused"))
        assert await ref.ask(Echo(1)) == 1
    assert recorder.of("failed") == [("worker", Refused)] * 2
    assert recorder.of("restarted") == []


@pytest.mark.parametrize(("kind", "error"), [("crash", ValueError), ("stray", RuntimeError)])
@pytest.mark.parametrize("actor", [Worker, Crowd])
async def test_crash_tells_the_asker_and_the_next_incarnation_goes_on(encode, recorder, kind, error, actor):
    log: list = []
    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        ref = await supervisor.start("worker", lambda: actor(log), capacity=4)
        with pytest.raises(ActorCrashed) as caught:
            await ref.ask(Fail(kind))
        assert caught.value.name == "worker"
        assert isinstance(caught.value.__cause__, error)
        assert await ref.ask(Echo(1)) == 1
    assert log[:4] == [("started", 1), Fail(kind), ("stopped", error), ("started", 2)]
    assert recorder.of("failed") == [("worker", error)]
    assert recorder.of("restarted") == [("worker", error)]
    assert supervisor.num_restarts == 1


async def test_mailbox_survives_a_crash(encode):
    log: list = []
    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker(log), capacity=8)
        await ref.send(Fail("crash"))
        asks = [asyncio.create_task(ref.ask(Echo(value))) for value in range(4)]
        assert await asyncio.gather(*asks) == [0, 1, 2, 3]


async def test_violation_answers_that_message_only(encode, recorder):
    log: list = []
    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker(log), capacity=4)
        for wrong in (Stranger(), 3, None, object()):
            with pytest.raises(ContractViolation):
                await ref.ask(wrong)
            await ref.send(wrong)
            assert ref.offer(wrong)
            await turns()
        assert await ref.ask(Echo(1)) == 1
    assert recorder.of("failed") == [("worker", ContractViolation)] * 12
    assert recorder.of("restarted") == []
    assert [entry for entry in log if isinstance(entry, Struct)] == [Echo(1)]


async def test_urgent_messages_overtake_and_never_wait(encode):
    log: list = []
    gate = asyncio.Event()
    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker(log, gate), capacity=1)
        await ref.send(Hold(0))
        await turns()
        assert ref.offer(Echo(1))
        assert not ref.offer(Echo(2))
        ref.post(Urgent(3))
        assert ref.offer(Urgent(4))
        await ref.send(Urgent(5))
        late = asyncio.create_task(ref.ask(Urgent(6)))
        await turns()
        statistics = ref.statistics()
        assert (statistics.length, statistics.urgent_length) == (1, 4)
        gate.set()
        assert await late == 6
    assert [m.value for m in log if isinstance(m, Struct)] == [0, 3, 4, 5, 6, 1]


async def test_post_takes_urgent_types_only(encode):
    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker([]), capacity=1)
        with pytest.raises(TypeError, match="Echo is not among the urgent types"):
            ref.post(Echo(1))


async def test_send_waits_for_room(encode):
    gate = asyncio.Event()
    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker([], gate), capacity=1)
        await ref.send(Hold(0))
        await turns()
        await ref.send(Echo(1))
        third = asyncio.create_task(ref.send(Echo(2)))
        await turns()
        assert not third.done()
        gate.set()
        await third


async def test_deadline_drops_an_unhandled_message(encode, recorder):
    log: list = []
    gate = asyncio.Event()
    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker(log, gate), capacity=2)
        await ref.send(Hold(0))
        with pytest.raises(TimeoutError):
            await ref.ask(Echo(1), timeout=0.005)
        with pytest.raises(TimeoutError):
            await ref.ask(Echo(2), timeout=0.0)
        gate.set()
        assert await ref.ask(Echo(3), timeout=10.0) == 3
    assert [m.value for m in log if isinstance(m, Struct)] == [0, 3]
    assert len(recorder.of("expired")) >= 1


async def test_deadline_holds_while_waiting_for_room(encode):
    gate = asyncio.Event()
    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker([], gate), capacity=1)
        await ref.send(Hold(0))
        await turns()
        await ref.send(Echo(1))
        with pytest.raises(TimeoutError):
            await ref.ask(Echo(2), timeout=0.005)
        assert ref.statistics().blocked == 0
        gate.set()


async def test_cancelled_ask_is_skipped(encode, recorder):
    log: list = []
    gate = asyncio.Event()
    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker(log, gate), capacity=2)
        await ref.send(Hold(0))
        asker = asyncio.create_task(ref.ask(Echo(1)))
        await turns()
        asker.cancel()
        await asyncio.wait([asker])
        gate.set()
        assert await ref.ask(Echo(2)) == 2
    assert [m.value for m in log if isinstance(m, Struct)] == [0, 2]
    assert recorder.of("expired") == recorder.of("failed") == []


async def test_asker_that_leaves_while_handled_disturbs_nobody(encode):
    gate = asyncio.Event()
    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker([], gate), capacity=2)
        asker = asyncio.create_task(ref.ask(Hold(0)))
        await turns()
        asker.cancel()
        await asyncio.wait([asker])
        gate.set()
        assert await ref.ask(Echo(2)) == 2


async def test_settled_runs_once_per_burst(encode):
    log: list = []
    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker(log), capacity=50)
        for value in range(40):
            await ref.send(Echo(value))
        await turns(20)
        assert log == [("started", 1), *map(Echo, range(40)), "settled"]
        await ref.send(Echo(41))
        await turns()
        assert log[-2:] == [Echo(41), "settled"]


async def test_crash_in_settled_restarts(encode):
    lives: list[int] = []

    class Planner(Actor[Echo]):
        async def started(self) -> None:
            lives.append(self.incarnation)

        async def receive(self, message: Echo) -> int:
            return message.value

        async def settled(self) -> None:
            if self.incarnation == 1:
                raise ValueError("no plan")

    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("planner", Planner, capacity=4)
        assert await ref.ask(Echo(1)) == 1
        await turns()
        assert await ref.ask(Echo(2)) == 2
    assert lives == [1, 2]


async def test_concurrent_receives(encode):
    log: list = []
    gate = asyncio.Event()
    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("crowd", lambda: Crowd(log, gate), capacity=8)
        asks = [asyncio.create_task(ref.ask(Hold(value))) for value in range(4)]
        await turns()
        assert log == [("started", 1), Hold(0), Hold(1), Hold(2)]
        assert ref.statistics().length == 1
        gate.set()
        assert await asyncio.gather(*asks) == [0, 1, 2, 3]
        await turns()
    assert log[4:] == [Hold(3), "settled", ("stopped", type(None))]


async def test_crash_of_one_concurrent_receive_ends_the_others(encode, recorder):
    log: list = []
    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        ref = await supervisor.start("crowd", lambda: Crowd(log), capacity=8)
        held = [asyncio.create_task(ref.ask(Hold(value))) for value in range(2)]
        await turns()
        with pytest.raises(ActorCrashed):
            await ref.ask(Fail("crash"))
        for answer in await asyncio.gather(*held, return_exceptions=True):
            assert isinstance(answer, ActorCrashed)
            assert isinstance(answer.__cause__, ValueError)
        assert await ref.ask(Echo(1)) == 1
    assert recorder.of("restarted") == [("crowd", ValueError)]
    assert sorted(error.__name__ for _, error in recorder.of("failed")) == ["ActorCrashed", "ActorCrashed", "ValueError"]


async def test_cancellation_that_an_actor_swallows_still_ends_it(encode):
    log: list = []

    class Stubborn(Actor[Echo]):
        async def receive(self, message: Echo) -> int:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                log.append("swallowed")
            return message.value

        async def settled(self) -> None:
            log.append("settled")

        async def stopped(self, error: BaseException | None) -> None:
            log.append(type(error))

    with pytest.raises(ZeroDivisionError):
        async with Supervisor("s", encode=encode) as supervisor:
            ref = await supervisor.start("stubborn", Stubborn, capacity=4)
            await ref.send(Echo(1))
            await turns()
            raise ZeroDivisionError
    assert log == ["swallowed", asyncio.CancelledError]


async def test_busy_actor_leaves_the_loop_its_turns(encode):
    class Spinner(Actor[Urgent]):
        urgent = (Urgent,)
        num_received = 0

        async def receive(self, message: Urgent) -> None:
            self.num_received += 1
            if message.value:
                self.ref.post(Urgent(message.value))

    spinner = Spinner()
    with pytest.raises(ZeroDivisionError):
        async with Supervisor("s", encode=encode) as supervisor:
            ref = await supervisor.start("spinner", lambda: spinner, capacity=1)
            ref.post(Urgent(1))
            await turns(5)
            assert spinner.num_received > 5
            raise ZeroDivisionError


async def test_talking_to_a_stopped_actor(encode, recorder):
    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        ref = await supervisor.start("worker", lambda: Worker([]), capacity=4)
    for talk in (ref.send(Echo(1)), ref.ask(Echo(1)), ref.ask(Echo(1), timeout=1.0), ref.send(Urgent(1)), ref.ask(Urgent(1))):
        with pytest.raises(ActorStopped, match="worker"):
            await talk
    assert not ref.offer(Echo(1))
    assert not ref.offer(Urgent(1))
    assert not recorder.of("failed")
    assert not ref.post(Urgent(1))
    assert recorder.of("failed") == [("worker", ActorStopped)]
