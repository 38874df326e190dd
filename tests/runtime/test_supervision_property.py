"""Random crash plans: whatever breaks, every ask is answered exactly once, and nothing outlives the block."""

import asyncio
from collections import Counter
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from actorllm.runtime.actor import Actor
from actorllm.runtime.faults import ActorCrashed, ActorStopped, RestartsExhausted
from actorllm.runtime.observer import Observer
from actorllm.runtime.supervisor import Supervisor

Kind = Literal["value", "reject", "crash", "slow", "slow crash", "stray"]
NAMES = "abc"


class Task(Struct, frozen=True, tag=True):
    number: int
    kind: Kind


class Rush(Struct, frozen=True, tag=True):
    number: int
    kind: Kind


class Rejected(Exception):
    pass


class Ledger(Observer):
    """Who restarted and crashed, and which messages were received how often."""

    def __init__(self) -> None:
        self.received: Counter[int] = Counter()
        self.alive: Counter[str] = Counter()
        self.own_restarts: Counter[str] = Counter()

    def restarted(self, name: str, error: BaseException) -> None:
        if not isinstance(error, ActorCrashed):
            self.own_restarts[name] += 1


class Member(Actor[Task | Rush]):
    urgent = (Rush,)
    rejections = (Rejected,)

    def __init__(self, ledger: Ledger, bad_starts: set[int]) -> None:
        self.ledger = ledger
        self.bad_starts = bad_starts

    async def started(self) -> None:
        self.ledger.alive[self.ref.name] += 1
        assert self.ledger.alive[self.ref.name] == 1, "two incarnations at once"
        await asyncio.sleep(0)
        if self.incarnation in self.bad_starts:
            raise LookupError("cannot start")

    async def receive(self, message: Task | Rush) -> int:
        self.ledger.received[message.number] += 1
        if message.kind.startswith("slow"):
            for _ in range(3):
                await asyncio.sleep(0)
        if message.kind == "reject":
            raise Rejected
        if message.kind.endswith("crash"):
            raise ValueError(message.number)
        if message.kind == "stray":
            raise asyncio.CancelledError
        return message.number

    async def settled(self) -> None:
        await asyncio.sleep(0)

    async def stopped(self, error: BaseException | None) -> None:
        self.ledger.alive[self.ref.name] -= 1
        await asyncio.sleep(0)


class Crowd(Member):
    concurrency = 3


class Plan(Struct, frozen=True):
    """What is done, in turns of the loop; `how` the block is left."""

    strategy: Literal["one_for_one", "one_for_all", "rest_for_one"]
    restarts: int
    encode: bool
    crowds: tuple[bool, ...]
    bad_starts: frozenset[int]
    asks: list[tuple[int, Kind, bool, bool]]  # actor, kind, urgent, cancelled two turns later
    how: Literal["drain", "error", "cancel"]


KINDS = st.sampled_from(["value", "value", "value", "reject", "crash", "slow", "slow crash", "stray"])
PLANS = st.builds(
    Plan,
    strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]),
    restarts=st.integers(0, 6),
    encode=st.booleans(),
    crowds=st.tuples(*[st.booleans()] * 3),
    bad_starts=st.frozensets(st.integers(2, 5), max_size=2),
    asks=st.lists(st.tuples(st.integers(0, 2), KINDS, st.booleans(), st.integers(0, 9).map(lambda n: n == 0)), max_size=25),
    how=st.sampled_from(["drain", "error", "cancel"]),
)


async def block(plan: Plan, ledger: Ledger, asks: list[asyncio.Task]) -> None:
    """The supervisor's block: everything that the plan asks, then its end."""
    async with Supervisor("s", strategy=plan.strategy, restarts=plan.restarts, encode=plan.encode, observer=ledger) as supervisor:
        refs = []
        for name, is_crowd in zip(NAMES, plan.crowds, strict=True):
            actor = Crowd if is_crowd else Member
            refs.append(await supervisor.start(name, lambda actor=actor: actor(ledger, set(plan.bad_starts)), capacity=2))
        for number, (index, kind, is_urgent, is_cancelled) in enumerate(plan.asks):
            message = Rush(number, kind) if is_urgent else Task(number, kind)
            ask = asyncio.create_task(refs[index].ask(message))
            asks.append(ask)
            if number % 3 == 0:
                await asyncio.sleep(0)
            if is_cancelled:
                await asyncio.sleep(0)
                ask.cancel()
        if plan.how == "error":
            raise ZeroDivisionError
        if plan.how == "cancel":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)


def check_answer(ask: asyncio.Task, number: int, kind: Kind, is_cancelled: bool) -> None:
    """One of the answers that may come: it came, it is one, and it fits the question."""
    assert ask.done()
    if ask.cancelled():
        assert is_cancelled
        return
    error = ask.exception()
    if error is None:
        assert ask.result() == number
        assert kind in ("value", "slow")
    elif isinstance(error, Rejected):
        assert kind == "reject"
    else:
        assert isinstance(error, ActorCrashed | ActorStopped)


async def trial(plan: Plan) -> None:
    unhandled: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    ledger, asks = Ledger(), []
    life = asyncio.create_task(block(plan, ledger, asks))
    await asyncio.wait([life], timeout=10.0)
    assert life.done(), "the block hangs"
    assert asyncio.all_tasks() - {asyncio.current_task(), *asks} == set(), "a task outlived the block"
    if asks:
        await asyncio.wait(asks, timeout=10.0)
    for number, (ask, (_, kind, _, is_cancelled)) in enumerate(zip(asks, plan.asks, strict=False)):
        check_answer(ask, number, kind, is_cancelled)
    assert all(count == 1 for count in ledger.received.values()), "a message was received twice"
    assert all(count == 0 for count in ledger.alive.values()), "an incarnation was not stopped"
    assert all(count <= plan.restarts for count in ledger.own_restarts.values()), "the budget was overdrawn"
    end = None if life.cancelled() else life.exception()
    assert isinstance(end, RestartsExhausted | ZeroDivisionError | None)
    if end is None and not life.cancelled():
        assert plan.how == "drain"
    assert unhandled == []


@settings(max_examples=250, deadline=None)
@given(plan=PLANS)
def test_every_ask_is_answered_once_and_nothing_outlives_the_block(plan):
    asyncio.run(trial(plan))


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]),
    crashes=st.lists(st.integers(0, 2), max_size=6),
    encode=st.booleans(),
)
def test_each_crash_restarts_exactly_the_strategys_set(strategy, crashes, encode):
    class Restarts(Ledger):
        def restarted(self, name: str, error: BaseException) -> None:
            restarted.append(name)

    restarted: list[str] = []

    async def run() -> None:
        expected = []
        ledger = Restarts()
        async with Supervisor("s", strategy=strategy, restarts=9, encode=encode, observer=ledger) as supervisor:
            refs = [await supervisor.start(name, lambda: Member(ledger, set()), capacity=2) for name in NAMES]
            for index in crashes:
                try:
                    await refs[index].ask(Task(0, "crash"))
                except ActorCrashed:
                    expected += {
                        "one_for_one": [NAMES[index]],
                        "one_for_all": list(NAMES),
                        "rest_for_one": list(NAMES[index:]),
                    }[strategy]
                for ref in refs:  # all are alive again
                    while True:
                        try:
                            assert await ref.ask(Task(1, "value")) == 1
                            break
                        except ActorCrashed:
                            continue
        assert restarted == expected
        assert supervisor.num_restarts == len(expected)

    asyncio.run(run())
