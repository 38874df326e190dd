"""A mailbox: a bounded lane with backpressure, and an urgent lane that overtakes it.

The bound is mandatory: awaiting `put` is the backpressure. A cycle of bounded mailboxes deadlocks, so the edge back
must be urgent; that lane's length is bounded by the work outstanding. Cancelling any await leaves the mailbox
consistent: a message is in it once or not at all, and no wake-up is lost. Knows no actor.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Any


class MailboxClosed(Exception):
    """The mailbox takes no more messages."""


@dataclass(slots=True, eq=False)
class Envelope:
    """A message on its way: its codec's form, who waits for a reply, until when it matters (monotonic seconds)."""

    data: Any
    reply: asyncio.Future | None = None
    deadline: float | None = None
    queued: float = 0.0

    def is_stale(self, now: float) -> bool:
        """Whether nobody wants it any more: its deadline has passed or its asker has left."""
        return (self.deadline is not None and now > self.deadline) or (self.reply is not None and self.reply.done())


@dataclass(frozen=True, slots=True)
class MailboxStatistics:
    """Lengths now, the longest ever, messages taken out, and seconds they had waited."""

    length: int
    urgent_length: int
    peak: int
    num_taken: int
    total_wait: float
    max_wait: float


class Mailbox:
    """Messages for one actor; it outlives the actor's incarnations. All methods belong to one event loop."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a mailbox needs a capacity of at least 1")
        self.capacity = capacity
        self._urgent: deque[Envelope] = deque()
        self._bounded: deque[Envelope] = deque()
        self._putters: deque[tuple[asyncio.Future[None], Envelope]] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._is_closed = False
        self._peak = self._num_taken = 0
        self._total_wait = self._max_wait = 0.0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._bounded)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    async def put(self, envelope: Envelope) -> None:
        """Append to the bounded lane, waiting first-come-first-served for room; raises `MailboxClosed`.

        A put that is cancelled after its message got in leaves it in.
        """
        if self.offer(envelope):
            return
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (admitted, envelope)
        self._putters.append(place)
        try:
            await admitted
        except asyncio.CancelledError:
            if place in self._putters:
                self._putters.remove(place)
            raise

    def offer(self, envelope: Envelope) -> bool:
        """Append to the bounded lane if there is room and nobody waits for it; raises `MailboxClosed`."""
        if self._is_closed:
            raise MailboxClosed
        if self._putters or len(self._bounded) >= self.capacity:
            return False
        self._append(self._bounded, envelope)
        return True

    def put_urgent(self, envelope: Envelope) -> None:
        """Append to the urgent lane at once; raises `MailboxClosed`."""
        if self._is_closed:
            raise MailboxClosed
        self._append(self._urgent, envelope)

    async def get(self) -> Envelope:
        """Take the next message, urgent ones first; raises `MailboxClosed` when closed and empty."""
        while not self:
            if self._is_closed:
                raise MailboxClosed
            arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(arrival)
            try:
                await arrival
            except asyncio.CancelledError:
                if arrival in self._getters:
                    self._getters.remove(arrival)
                elif self:
                    self._wake_getter()  # this getter was woken but leaves: pass it on
                raise
        return self._take()

    def close(self) -> None:
        """Refuse new messages; what is there can still be taken. Waiting putters get `MailboxClosed`. Idempotent."""
        self._is_closed = True
        while self._putters:
            admitted, _ = self._putters.popleft()
            if not admitted.done():
                admitted.set_exception(MailboxClosed())
        while self._getters:
            self._wake_getter()

    def close_and_empty(self) -> list[Envelope]:
        """Close, and return what nobody will handle any more."""
        self.close()
        rest = [*self._urgent, *self._bounded]
        self._urgent.clear()
        self._bounded.clear()
        return rest

    def statistics(self) -> MailboxStatistics:
        return MailboxStatistics(
            length=len(self._bounded),
            urgent_length=len(self._urgent),
            peak=self._peak,
            num_taken=self._num_taken,
            total_wait=self._total_wait,
            max_wait=self._max_wait,
        )

    def _append(self, lane: deque[Envelope], envelope: Envelope) -> None:
        envelope.queued = time.monotonic()
        lane.append(envelope)
        self._peak = max(self._peak, len(self))
        self._wake_getter()

    def _take(self) -> Envelope:
        if self._urgent:
            envelope = self._urgent.popleft()
        else:
            envelope = self._bounded.popleft()
            self._admit_putter()
        wait = time.monotonic() - envelope.queued
        self._num_taken += 1
        self._total_wait += wait
        self._max_wait = max(self._max_wait, wait)
        return envelope

    def _admit_putter(self) -> None:
        """Move the longest waiting putter's message in; a cancelled one is passed over."""
        while self._putters:
            admitted, envelope = self._putters.popleft()
            if not admitted.done():
                self._append(self._bounded, envelope)
                admitted.set_result(None)
                return

    def _wake_getter(self) -> None:
        while self._getters:
            arrival = self._getters.popleft()
            if not arrival.done():
                arrival.set_result(None)
                return
