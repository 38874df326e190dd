"""Supervision: who restarts, when it is too much, and how the block is left; with encoded and with plain messages."""

import asyncio

import pytest
from msgspec import Struct

from actorllm.runtime.actor import Actor
from actorllm.runtime.faults import ActorCrashed, ActorStopped, RestartsExhausted
from actorllm.runtime.ref import Ref
from actorllm.runtime.supervisor import Supervisor

pytestmark = pytest.mark.usefixtures("no_task_left")


class Work(Struct, frozen=True, tag=True):
    value: int


class Crash(Struct, frozen=True, tag=True):
    pass


class Stuck(Struct, frozen=True, tag=True):
    pass


class Fatal(Exception):
    pass


class Member(Actor[Work | Crash | Stuck]):
    """Passes work on to `consumer`, if it has one, and logs its life."""

    def __init__(self, log: list, consumer: Ref | None = None, error: Exception | None = None) -> None:
        self.log = log
        self.consumer = consumer
        self.error = error or ValueError("broken")

    async def started(self) -> None:
        self.log.append(("started", self.ref.name, self.incarnation))

    async def receive(self, message: Work | Crash | Stuck) -> int:
        if isinstance(message, Crash):
            raise self.error
        if isinstance(message, Stuck):
            await asyncio.sleep(3600)
            return 0
        if self.consumer is not None:
            await self.consumer.send(message)
        self.log.append(("worked", self.ref.name, message.value))
        return message.value

    async def stopped(self, error: BaseException | None) -> None:
        self.log.append(("stopped", self.ref.name, type(error)))


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def start_three(supervisor: Supervisor, log: list) -> list[Ref]:
    return [await supervisor.start(name, lambda: Member(log), capacity=8) for name in "abc"]


async def test_normal_exit_drains_producers_first(encode, recorder):
    log: list = []
    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        last = await supervisor.start("last", lambda: Member(log), capacity=1)
        middle = await supervisor.start("middle", lambda: Member(log, last), capacity=1)
        first = await supervisor.start("first", lambda: Member(log, middle), capacity=20)
        for value in range(20):
            assert first.offer(Work(value))
    for name in ("first", "middle", "last"):
        assert [value for kind, who, value in log if kind == "worked" and who == name] == list(range(20))
    assert [fact[0] for fact in recorder.of("stopped")] == ["first", "middle", "last"]
    assert not recorder.of("failed")


@pytest.mark.parametrize(("strategy", "restarted"), [("one_for_one", "b"), ("one_for_all", "abc"), ("rest_for_one", "bc")])
async def test_strategy_restarts_the_right_actors(encode, recorder, strategy, restarted):
    log: list = []
    stuck: dict[str, asyncio.Task] = {}
    with pytest.raises(ZeroDivisionError):
        async with Supervisor("s", strategy=strategy, encode=encode, observer=recorder) as supervisor:
            refs = await start_three(supervisor, log)
            stuck |= {ref.name: asyncio.create_task(ref.ask(Stuck())) for ref in refs if ref.name != "b"}
            await turns()
            with pytest.raises(ActorCrashed):
                await refs[1].ask(Crash())
            for ref in refs:
                if ref.name in restarted:
                    assert await ref.ask(Work(2)) == 2
            raise ZeroDivisionError  # leaves the stuck ones without draining them
    assert "".join(name for name, _ in recorder.of("restarted")) == restarted
    assert [entry for entry in log if entry[0] == "started"][3:] == [("started", name, 2) for name in restarted]
    for name, ask in stuck.items():
        expected = ActorCrashed if name in restarted else ActorStopped
        assert type(ask.exception()) is expected
        assert (("stopped", name, ActorCrashed) in log) == (name in restarted)


async def test_old_incarnations_end_before_new_ones_start_in_order(encode):
    log: list = []

    class Slow(Member):
        async def started(self) -> None:
            if self.ref.name == "a":
                await turns(20)
            await super().started()

        async def stopped(self, error: BaseException | None) -> None:
            await turns(20)
            await super().stopped(error)

    async with Supervisor("s", strategy="one_for_all", encode=encode) as supervisor:
        refs = [await supervisor.start(name, lambda: Slow(log), capacity=4) for name in "ab"]
        with pytest.raises(ActorCrashed):
            await refs[0].ask(Crash())
        assert await refs[0].ask(Work(1)) == 1  # by the new incarnation
    kinds = [entry[:2] for entry in log if entry[0] != "worked"][2:6]
    assert sorted(kinds[:2]) == [("stopped", "a"), ("stopped", "b")]
    assert kinds[2:] == [("started", "a"), ("started", "b")]


async def test_sibling_that_fails_while_it_is_cancelled_counts_no_crash(encode, recorder):
    class Brittle(Member):
        async def receive(self, message: Work | Crash | Stuck) -> int:
            try:
                return await super().receive(message)
            except asyncio.CancelledError:
                raise LookupError("clean-up failed") from None

    with pytest.raises(ZeroDivisionError):
        async with Supervisor("s", strategy="one_for_all", restarts=1, encode=encode, observer=recorder) as supervisor:
            a, b = [await supervisor.start(name, lambda: Brittle([]), capacity=4) for name in "ab"]
            ask = asyncio.create_task(b.ask(Stuck()))
            await turns()
            await a.send(Crash())
            assert isinstance((await asyncio.gather(ask, return_exceptions=True))[0], ActorCrashed)
            assert [await ref.ask(Work(1)) for ref in (a, b)] == [1, 1]
            ask = asyncio.create_task(b.ask(Stuck()))
            await turns()
            raise ZeroDivisionError
    assert isinstance((await asyncio.gather(ask, return_exceptions=True))[0], ActorCrashed)
    assert [name for name, _ in recorder.of("restarted")] == ["a", "b"]


async def test_budget_is_an_actors_own_and_then_the_block_ends(encode, recorder):
    with pytest.raises(RestartsExhausted, match="'b' of 's'") as caught:
        async with Supervisor("s", restarts=2, encode=encode, observer=recorder) as supervisor:
            a, b, _ = await start_three(supervisor, [])
            for ref in (a, b, a, b):
                with pytest.raises(ActorCrashed):
                    await ref.ask(Crash())
            assert await b.ask(Work(1)) == 1
            await b.send(Crash())
            await asyncio.sleep(3600)
    assert (caught.value.name, caught.value.supervisor) == ("b", "s")
    assert isinstance(caught.value.error, ValueError)
    assert caught.value.__cause__ is caught.value.error
    assert len(recorder.of("restarted")) == 4
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_crashes_outside_of_the_window_are_forgiven(encode):
    async with Supervisor("s", restarts=1, window=0.0, encode=encode) as supervisor:
        ref = await supervisor.start("a", lambda: Member([]), capacity=4)
        for _ in range(5):
            with pytest.raises(ActorCrashed):
                await ref.ask(Crash())
        assert await ref.ask(Work(1)) == 1


async def test_fatal_errors_are_not_restarted(encode, recorder):
    with pytest.raises(RestartsExhausted) as caught:
        async with Supervisor("s", fatal=(Fatal,), encode=encode, observer=recorder) as supervisor:
            ref = await supervisor.start("a", lambda: Member([], error=Fatal("lost")), capacity=4)
            await ref.send(Crash())
            await asyncio.sleep(3600)
    assert isinstance(caught.value.error, Fatal)
    assert not recorder.of("restarted")


async def test_escalation_answers_every_asker(encode, recorder):
    asks: list[asyncio.Task] = []
    with pytest.raises(RestartsExhausted):
        async with Supervisor("s", restarts=0, encode=encode, observer=recorder) as supervisor:
            refs = await start_three(supervisor, [])
            asks += [asyncio.create_task(refs[0].ask(Stuck()))]
            asks += [asyncio.create_task(refs[0].ask(Work(value))) for value in range(12)]  # some wait for room
            asks += [asyncio.create_task(refs[1].ask(Work(value), timeout=60.0)) for value in range(3)]
            asks += [asyncio.create_task(refs[1].ask(Crash()))]
            asks += [asyncio.create_task(refs[1].ask(Work(9)))]
            try:
                await asyncio.sleep(3600)
            finally:
                with pytest.raises(ActorStopped):  # nobody hangs, not even clean-up code of the block
                    await refs[1].ask(Work(1))
    answers = await asyncio.gather(*asks, return_exceptions=True)
    assert [type(answer) for answer in answers[:13]] == [ActorStopped] * 13
    assert answers[13:16] == [0, 1, 2]
    assert [type(answer) for answer in answers[16:]] == [ActorCrashed, ActorStopped]


async def test_error_of_the_block_leaves_bare_and_actors_are_cancelled(encode):
    log: list = []
    with pytest.raises(ZeroDivisionError):
        async with Supervisor("s", encode=encode) as supervisor:
            ref = await supervisor.start("a", lambda: Member(log), capacity=4)
            asks = [asyncio.create_task(ref.ask(message)) for message in (Stuck(), Work(1))]
            await turns()
            raise ZeroDivisionError
    assert [type(answer) for answer in await asyncio.gather(*asks, return_exceptions=True)] == [ActorStopped] * 2
    assert log == [("started", "a", 1), ("stopped", "a", asyncio.CancelledError)]


async def test_error_of_the_block_beside_an_escalation_is_noted(encode):
    with pytest.raises(RestartsExhausted) as caught:
        async with Supervisor("s", restarts=0, encode=encode) as supervisor:
            ref = await supervisor.start("a", lambda: Member([]), capacity=4)
            await ref.ask(Crash())
            await asyncio.sleep(3600)
    assert "ActorCrashed" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("is_draining", [False, True])
async def test_cancelling_the_block(encode, is_draining):
    log: list = []

    async def block() -> None:
        async with Supervisor("s", encode=encode) as supervisor:
            ref = await supervisor.start("a", lambda: Member(log), capacity=4)
            asks.extend(asyncio.create_task(ref.ask(message)) for message in (Stuck(), Work(1)))
            await turns()
            if not is_draining:
                await asyncio.sleep(3600)

    asks: list[asyncio.Task] = []
    task = asyncio.create_task(block())
    await turns(30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [type(answer) for answer in await asyncio.gather(*asks, return_exceptions=True)] == [ActorStopped] * 2
    assert log[-1] == ("stopped", "a", asyncio.CancelledError)


async def test_crash_while_draining_restarts_and_drains_on(encode):
    log: list = []
    async with Supervisor("s", strategy="one_for_all", encode=encode) as supervisor:
        a, b = [await supervisor.start(name, lambda: Member(log), capacity=8) for name in "ab"]
        for ref in (a, b):
            for message in (Crash(), Work(1)):
                assert ref.offer(message)
    assert sorted(entry for entry in log if entry[0] == "worked") == [("worked", "a", 1), ("worked", "b", 1)]


async def test_escalation_while_draining(encode):
    with pytest.raises(RestartsExhausted):
        async with Supervisor("s", restarts=0, encode=encode) as supervisor:
            refs = await start_three(supervisor, [])
            refs[2].offer(Crash())


async def test_first_start_that_fails_is_the_callers(encode, recorder):
    log: list = []

    class Unable(Member):
        async def started(self) -> None:
            raise Fatal("no such file")

    def broken() -> Actor:
        raise Fatal("no such class")

    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        with pytest.raises(Fatal, match="file"):
            await supervisor.start("a", lambda: Unable(log), capacity=4)
        with pytest.raises(Fatal, match="class"):
            await supervisor.start("a", broken, capacity=4)
        ref = await supervisor.start("a", lambda: Member(log), capacity=4)
        assert await ref.ask(Work(1)) == 1
    assert log[0] == ("stopped", "a", Fatal)
    assert not recorder.of("restarted")


@pytest.mark.parametrize("where", ["factory", "started"])
async def test_later_start_that_fails_is_a_crash(encode, recorder, where):
    lives = iter(range(10))

    class Frail(Member):
        async def started(self) -> None:
            if where == "started" and 1 < self.incarnation < 4:
                raise LookupError

    def factory() -> Actor:
        if where == "factory" and next(lives) in (1, 2):
            raise LookupError
        return Frail([])

    async with Supervisor("s", restarts=3, encode=encode, observer=recorder) as supervisor:
        ref = await supervisor.start("a", factory, capacity=4)
        await ref.send(Crash())
        assert await ref.ask(Work(1)) == 1
    assert [error for _, error in recorder.of("restarted")] == [ValueError, LookupError, LookupError]
    with pytest.raises(RestartsExhausted) as caught:
        lives = iter(range(10))
        async with Supervisor("s", restarts=2, encode=encode) as supervisor:
            ref = await supervisor.start("a", factory, capacity=4)
            await ref.send(Crash())
            await asyncio.sleep(3600)
    assert isinstance(caught.value.error, LookupError)


async def test_cancelled_start_leaves_nothing(encode):
    class Sleeper(Member):
        async def started(self) -> None:
            await asyncio.sleep(3600)

    async with Supervisor("s", encode=encode) as supervisor:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await supervisor.start("a", lambda: Sleeper([]), capacity=4)
        ref = await supervisor.start("a", lambda: Member([]), capacity=4)
        assert await ref.ask(Work(1)) == 1


async def test_stopped_that_raises_is_observed_only(encode, recorder):
    class Untidy(Member):
        async def stopped(self, error: BaseException | None) -> None:
            raise OSError("disk full")

    async with Supervisor("s", encode=encode, observer=recorder) as supervisor:
        ref = await supervisor.start("a", lambda: Untidy([]), capacity=4)
        with pytest.raises(ActorCrashed):
            await ref.ask(Crash())
        assert await ref.ask(Work(1)) == 1
    assert [error for _, error in recorder.of("failed")] == [ValueError, OSError, OSError]


async def test_supervisors_nest(encode):
    log: list = []
    async with Supervisor("outer", encode=encode) as outer:
        a = await outer.start("a", lambda: Member(log), capacity=4)
        with pytest.raises(RestartsExhausted, match="'b' of 'inner'"):
            async with Supervisor("inner", restarts=0, encode=encode) as inner:
                b = await inner.start("b", lambda: Member(log, a), capacity=4)
                assert await b.ask(Work(1)) == 1
                await b.send(Crash())
                await asyncio.sleep(3600)
        assert await a.ask(Work(2)) == 2
    with pytest.raises(RestartsExhausted, match="'a' of 'outer'"):
        async with (
            Supervisor("outer", restarts=0, encode=encode) as outer,
            Supervisor("inner", encode=encode) as inner,
        ):
            a = await outer.start("a", lambda: Member(log), capacity=4)
            b = await inner.start("b", lambda: Member(log, a), capacity=4)
            await a.send(Crash())
            await asyncio.sleep(3600)
    assert log[-1][:2] == ("stopped", "b") or log[-2][:2] == ("stopped", "b")


async def test_misuse_is_refused(encode):
    supervisor = Supervisor("s", encode=encode)
    with pytest.raises(RuntimeError, match="inside of its block"):
        await supervisor.start("a", lambda: Member([]), capacity=4)
    async with supervisor:
        await supervisor.start("a", lambda: Member([]), capacity=4)
        with pytest.raises(ValueError, match="'a' already"):
            await supervisor.start("a", lambda: Member([]), capacity=4)
        with pytest.raises(ValueError, match="capacity"):
            await supervisor.start("b", lambda: Member([]), capacity=0)
    with pytest.raises(RuntimeError, match="inside of its block"):
        await supervisor.start("c", lambda: Member([]), capacity=4)
    with pytest.raises(ValueError, match="strategy"):
        Supervisor("s", strategy="none")  # type: ignore[arg-type]
