"""A queue with two lanes: a bounded one, whose full state holds its producers back, and an urgent one.

Any number of tasks may put and get, all on one event loop. This file knows nothing of actors, of what the items are, or
of who reads them.

Cancelling any await leaves the mailbox consistent, because the await never holds an item: a waiting `put` is promised
room and puts only when it runs again (a cancelled one hands its promise on), a waiting `get` is woken and takes only
when it runs again (a cancelled one hands the wake-up on). Hence a put was cancelled if and only if its item was not put.
"""

import asyncio
from collections import deque
from time import monotonic
from typing import Generic, TypeVar

import msgspec

from actorllm.runtime.faults import MailboxClosed

T = TypeVar("T")


class MailboxStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot. `length` and `urgent_length` are items now in each lane, `blocked` the puts that wait for room, `peak`
    the most items ever held in both lanes. `handled` items were taken out, after `wait_seconds` in total and
    `max_wait_seconds` at most."""

    capacity: int
    length: int
    urgent_length: int
    blocked: int
    peak: int
    handled: int
    wait_seconds: float
    max_wait_seconds: float


class Mailbox(Generic[T]):
    """`capacity` bounds the items of the bounded lane, at least 1. The urgent lane has no bound of its own:
    whoever posts bounds it by the work that is outstanding."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a mailbox needs a capacity of at least 1, not {capacity}")
        self.capacity = capacity
        self.is_closed = False
        self._lane: deque[tuple[float, T]] = deque()
        self._urgent: deque[tuple[float, T]] = deque()
        self._num_promised = 0  # puts that were promised room and have not run since
        self._putters: deque[asyncio.Future[None]] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._peak = 0
        self._handled = 0
        self._wait_seconds = 0.0
        self._max_wait_seconds = 0.0

    def __len__(self) -> int:
        return len(self._lane) + len(self._urgent)

    # --- putting ---

    def offer(self, item: T) -> bool:
        """Put `item` into the bounded lane if there is room now; False when it is full or closed."""
        if self.is_closed or len(self._lane) + self._num_promised >= self.capacity:
            return False
        self._append(self._lane, item)
        return True

    async def put(self, item: T) -> None:
        """Put `item` into the bounded lane, waiting for room behind the puts that wait already.

        Raises `MailboxClosed` if the mailbox is closed, or gets closed meanwhile.
        """
        if self.is_closed:
            raise MailboxClosed("put into a closed mailbox")
        if self._num_promised or len(self._lane) >= self.capacity:
            await self._room()
        self._append(self._lane, item)

    def post(self, item: T) -> None:
        """Put `item` into the urgent lane, at once. Raises `MailboxClosed` if the mailbox is closed."""
        if self.is_closed:
            raise MailboxClosed("post into a closed mailbox")
        self._append(self._urgent, item)

    def _append(self, lane: deque[tuple[float, T]], item: T) -> None:
        lane.append((monotonic(), item))
        length = len(self._lane) + len(self._urgent)
        if length > self._peak:
            self._peak = length
        if self._getters:
            _wake_first(self._getters)

    async def _room(self) -> None:
        """Wait for this put's turn. On return there is room, and no other put may take it before the caller runs on."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._putters.append(waiter)
        self._promise()
        try:
            if waiter.done():  # promised at once, yet behind puts that were promised room and have not run since
                await asyncio.sleep(0)
            else:
                await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                _forget(self._putters, waiter)
            else:
                self._num_promised -= 1
                self._promise()
            raise
        self._num_promised -= 1
        if self.is_closed:
            raise MailboxClosed("the mailbox was closed while a put waited for room")

    def _promise(self) -> None:
        """Wake as many waiting puts as there is room for."""
        while self._putters and len(self._lane) + self._num_promised < self.capacity and _wake_first(self._putters):
            self._num_promised += 1

    # --- getting ---

    def take(self) -> T | None:
        """The next item, urgent ones first, or None when there is none now."""
        if self._urgent:
            put_at, item = self._urgent.popleft()
        elif self._lane:
            put_at, item = self._lane.popleft()
            if self._putters:
                self._promise()
        else:
            return None
        waited = monotonic() - put_at
        self._handled += 1
        self._wait_seconds += waited
        if waited > self._max_wait_seconds:
            self._max_wait_seconds = waited
        return item

    async def wait(self) -> None:
        """Return when there is something to take; raises `MailboxClosed` when it is closed and nothing is left."""
        while not self._lane and not self._urgent:
            if self.is_closed:
                raise MailboxClosed("the mailbox is closed and empty")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.cancelled():
                    _forget(self._getters, waiter)
                elif len(self):
                    _wake_first(self._getters)
                raise

    async def get(self) -> T:
        """The next item, urgent ones first; raises `MailboxClosed` when it is closed and nothing is left."""
        while (item := self.take()) is None:
            await self.wait()
        return item

    # --- the end ---

    def close(self) -> None:
        """Let nothing more in: waiting and later puts fail, gets drain what is there and then fail."""
        self.is_closed = True
        while _wake_first(self._putters):
            self._num_promised += 1
        while _wake_first(self._getters):
            pass

    def clear(self) -> list[T]:
        """Take out everything that is left, urgent items first, uncounted."""
        items = [item for _, item in (*self._urgent, *self._lane)]
        self._urgent.clear()
        self._lane.clear()
        self._promise()
        return items

    def statistics(self) -> MailboxStatistics:
        return MailboxStatistics(
            capacity=self.capacity,
            length=len(self._lane),
            urgent_length=len(self._urgent),
            blocked=len(self._putters) + self._num_promised,
            peak=self._peak,
            handled=self._handled,
            wait_seconds=self._wait_seconds,
            max_wait_seconds=self._max_wait_seconds,
        )


def _wake_first(waiters: deque[asyncio.Future[None]]) -> bool:
    """Wake the longest-waiting of `waiters` and forget it; False if nobody waits."""
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return True
    return False


def _forget(waiters: deque[asyncio.Future[None]], waiter: asyncio.Future[None]) -> None:
    """Remove a cancelled waiter, if a wake-up has not skipped it already."""
    if waiter in waiters:
        waiters.remove(waiter)
