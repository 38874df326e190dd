"""The mailbox against a brute-force model, under random operations, cancellation included, and a few plain cases."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm.runtime.faults import MailboxClosed
from actorllm.runtime.mailbox import Mailbox

PRODUCERS = 3
OPERATION = st.one_of(
    st.tuples(st.sampled_from(["put", "offer", "post"]), st.integers(0, PRODUCERS - 1)),
    st.tuples(st.sampled_from(["get", "take"]), st.just(0)),
    st.tuples(st.sampled_from(["cancel put", "cancel get"]), st.integers(0, 7)),
    st.tuples(st.just("turn"), st.integers(1, 2)),
)


class Trial:
    """Runs operations on a mailbox and writes down what is certain: what went in, what came out, what was refused.

    An item is (lane, producer, serial number).
    """

    def __init__(self, capacity: int) -> None:
        self.mailbox: Mailbox[tuple[str, int, int]] = Mailbox(capacity)
        self.put_in: list[tuple[str, int, int]] = []
        self.got: list[tuple[str, int, int]] = []
        self.refused: list[tuple[str, int, int]] = []
        self.puts: list[asyncio.Task[None]] = []
        self.gets: list[asyncio.Task[None]] = []
        self.serial = 0

    async def run(self, operations: list[tuple[str, int]]) -> None:
        for name, number in operations:
            await self.step(name, number)
            statistics = self.mailbox.statistics()
            assert statistics.length <= self.mailbox.capacity
            assert statistics.length + statistics.urgent_length == len(self.mailbox) <= statistics.peak

    async def step(self, name: str, number: int) -> None:
        self.serial += 1
        item = ("urgent" if name == "post" else "bounded", number, self.serial)
        match name:
            case "put":
                self.puts.append(asyncio.create_task(self.put(item)))
            case "offer":
                has_room = self.mailbox.statistics().length < self.mailbox.capacity
                was_taken = self.mailbox.offer(item)
                (self.put_in if was_taken else self.refused).append(item)
                assert has_room or not was_taken
            case "post":
                self.mailbox.post(item)
                self.put_in.append(item)
            case "get":
                self.gets.append(asyncio.create_task(self.get()))
            case "take":
                if (taken := self.mailbox.take()) is not None:
                    self.got.append(taken)
            case "cancel put" if self.puts:
                self.puts[number % len(self.puts)].cancel()
            case "cancel get" if self.gets:
                self.gets[number % len(self.gets)].cancel()
            case "turn":
                for _ in range(number):
                    await asyncio.sleep(0)

    async def put(self, item: tuple[str, int, int]) -> None:
        try:
            await self.mailbox.put(item)
        except BaseException:
            self.refused.append(item)
            raise
        self.put_in.append(item)

    async def get(self) -> None:
        self.got.append(await self.mailbox.get())

    async def finish(self) -> list[BaseException | None]:
        """Close, wait for everybody, and take out the rest; how the puts and gets ended."""
        self.mailbox.close()
        ends = await asyncio.gather(*self.puts, *self.gets, return_exceptions=True)
        while (taken := self.mailbox.take()) is not None:
            self.got.append(taken)
        return ends


@settings(max_examples=400, deadline=None)
@given(capacity=st.integers(1, 3), operations=st.lists(OPERATION, max_size=60))
def test_nothing_is_lost_duplicated_or_left_waiting(capacity, operations):
    async def trial() -> None:
        run = Trial(capacity)
        await run.run(operations)
        for _ in range(5):  # everything that can go on without new operations does
            await asyncio.sleep(0)
        statistics = run.mailbox.statistics()
        waiting_puts = [task for task in run.puts if not task.done()]
        waiting_gets = [task for task in run.gets if not task.done()]
        assert len(waiting_puts) == statistics.blocked
        assert not waiting_puts or statistics.length == capacity  # no lost wake-up of a put
        assert not waiting_gets or len(run.mailbox) == 0  # no lost wake-up of a get
        ends = await run.finish()
        assert {type(end) for end in ends} <= {type(None), MailboxClosed, asyncio.CancelledError}
        assert Counter(run.got) == Counter(run.put_in)
        assert not set(run.put_in) & set(run.refused)
        assert run.mailbox.statistics().handled == len(run.got)

    asyncio.run(trial())


@settings(max_examples=200, deadline=None)
@given(capacity=st.integers(1, 3), operations=st.lists(OPERATION, max_size=60))
def test_each_lane_is_in_order(capacity, operations):
    """With one reader, items leave a lane in the order in which they entered it; puts enter in the order of asking."""

    async def trial() -> None:
        run = Trial(capacity)
        await run.run([operation for operation in operations if operation[0] not in ("get", "cancel get")])
        await run.finish()
        for lane in ("urgent", "bounded"):
            entered = [item for item in run.put_in if item[0] == lane]
            assert [item for item in run.got if item[0] == lane] == entered
        waited = [number for lane, _, number in run.got if lane == "bounded" and number in run_puts(operations)]
        assert waited == sorted(waited)

    def run_puts(operations: list[tuple[str, int]]) -> set[int]:
        kept = [name for name, _ in operations if name not in ("get", "cancel get")]
        return {serial for serial, name in enumerate(kept, 1) if name == "put"}

    asyncio.run(trial())


@settings(max_examples=200, deadline=None)
@given(
    operations=st.lists(st.tuples(st.sampled_from(["offer", "post", "take"]), st.just(0)), max_size=60),
    capacity=st.integers(1, 4),
)
def test_without_waiting_it_equals_two_lists(operations, capacity):
    mailbox: Mailbox[int] = Mailbox(capacity)
    bounded: list[int] = []
    urgent: list[int] = []
    for number, (name, _) in enumerate(operations):
        if name == "offer":
            assert mailbox.offer(number) == (len(bounded) < capacity)
            bounded += [number] if len(bounded) < capacity else []
        elif name == "post":
            mailbox.post(number)
            urgent.append(number)
        else:
            lane = urgent or bounded
            assert mailbox.take() == (lane.pop(0) if lane else None)
        assert (mailbox.statistics().length, mailbox.statistics().urgent_length) == (len(bounded), len(urgent))
    assert mailbox.clear() == urgent + bounded


async def test_a_cancelled_put_hands_its_promise_on():
    mailbox: Mailbox[int] = Mailbox(1)
    mailbox.offer(0)
    first, second = [asyncio.create_task(mailbox.put(number)) for number in (1, 2)]
    await asyncio.sleep(0)
    assert mailbox.take() == 0  # promises room to the first
    first.cancel()
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert mailbox.clear() == [2]


async def test_a_cancelled_get_hands_its_wake_up_on():
    mailbox: Mailbox[int] = Mailbox(1)
    first, second = [asyncio.create_task(mailbox.get()) for _ in range(2)]
    await asyncio.sleep(0)
    mailbox.offer(7)  # wakes the first
    first.cancel()
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert second.result() == 7


async def test_an_offer_does_not_take_promised_room():
    mailbox: Mailbox[int] = Mailbox(1)
    mailbox.offer(0)
    put = asyncio.create_task(mailbox.put(1))
    await asyncio.sleep(0)
    mailbox.take()
    assert not mailbox.offer(2)
    await put
    assert mailbox.clear() == [1]


async def test_a_new_put_does_not_overtake_one_that_waited():
    mailbox: Mailbox[int] = Mailbox(2)
    for number in (-1, 0):
        mailbox.offer(number)
    waiting = asyncio.create_task(mailbox.put(1))
    await asyncio.sleep(0)
    assert (mailbox.take(), mailbox.take()) == (-1, 0)  # room for two, one place promised
    await mailbox.put(2)
    await waiting
    assert mailbox.clear() == [1, 2]


async def test_closing_fails_puts_and_lets_gets_drain():
    mailbox: Mailbox[int] = Mailbox(1)
    mailbox.offer(0)
    blocked = asyncio.create_task(mailbox.put(1))
    await asyncio.sleep(0)
    mailbox.close()
    mailbox.close()
    with pytest.raises(MailboxClosed):
        await blocked
    with pytest.raises(MailboxClosed):
        await mailbox.put(2)
    with pytest.raises(MailboxClosed):
        mailbox.post(3)
    assert not mailbox.offer(4)
    assert await mailbox.get() == 0
    with pytest.raises(MailboxClosed):
        await mailbox.get()
    assert mailbox.statistics().blocked == 0


async def test_statistics():
    mailbox: Mailbox[int] = Mailbox(2)
    for number in range(2):
        mailbox.offer(number)
    mailbox.post(2)
    for _ in range(3):
        await mailbox.get()
    statistics = mailbox.statistics()
    assert (statistics.capacity, statistics.length, statistics.urgent_length) == (2, 0, 0)
    assert (statistics.peak, statistics.handled) == (3, 3)
    assert 0.0 <= statistics.max_wait_seconds <= statistics.wait_seconds <= 3 * statistics.max_wait_seconds


def test_a_bound_is_mandatory():
    with pytest.raises(ValueError, match="at least 1"):
        Mailbox(0)
