"""A reference to an actor: the only way to talk to it. It survives the actor's restarts.

Knows the mailbox and the contract, not who handles the messages.
"""

import asyncio
from time import monotonic
from typing import Any, Generic, TypeVar

from actorllm.runtime.codec import Contract
from actorllm.runtime.faults import ActorCrashed, ActorStopped, MailboxClosed
from actorllm.runtime.mailbox import Mailbox, MailboxStatistics
from actorllm.runtime.observer import Observer

__all__ = ["ActorCrashed", "ActorStopped", "Envelope", "Ref"]

M = TypeVar("M", contravariant=True)


class Envelope:
    """A message on its way, and at most one answer on its way back. Only an ask has a `reply` to be resolved;
    `deadline` is in `time.monotonic()` seconds. The error is no exception of the future's, because nobody
    might be left to retrieve it."""

    __slots__ = ("deadline", "error", "payload", "reply")

    def __init__(self, payload: Any, reply: "asyncio.Future[Any] | None" = None, deadline: float | None = None) -> None:
        self.payload = payload
        self.reply = reply
        self.deadline = deadline
        self.error: BaseException | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the answer."""
        return self.reply is not None and not self.reply.done()

    def answer(self, payload: Any) -> None:
        if self.reply is not None and not self.reply.done():
            self.reply.set_result(payload)

    def fail(self, error: BaseException) -> None:
        if self.reply is not None and not self.reply.done():
            self.error = error
            self.reply.set_result(None)


class Ref(Generic[M]):
    """Sends messages of type M to the actor called `name`. Use it on the loop's thread only; another thread
    calls `loop.call_soon_threadsafe(ref.post, message)`."""

    def __init__(self, name: str, mailbox: Mailbox[Envelope], *, contract: Contract, observer: Observer) -> None:
        self.name = name
        self._mailbox = mailbox
        self._contract = contract
        self._observer = observer

    async def send(self, message: M) -> None:
        """Put a message in; waits for room unless its type is urgent. Raises `ActorStopped`.

        A send that is cancelled was not sent. A message that breaks the contract is observed as failed, later.
        """
        await self._put(message, Envelope(self._contract.pack(message)))

    def offer(self, message: M) -> bool:
        """Put a message in without waiting; False when the lane is full or the actor has stopped."""
        envelope = Envelope(self._contract.pack(message))
        if type(message) not in self._contract.urgent:
            return self._mailbox.offer(envelope)
        if self._mailbox.is_closed:
            return False
        self._mailbox.post(envelope)
        return True

    def post(self, message: M) -> bool:
        """Put an urgent message in at once. Raises `TypeError` when its type is not declared urgent.

        Never raises for a stopped actor, because clean-up code and callbacks post: that is observed as failed, and
        False is returned.
        """
        if type(message) not in self._contract.urgent:
            raise TypeError(f"{type(message).__name__} is not among the urgent types of actor {self.name!r}")
        if self._mailbox.is_closed:
            self._observer.failed(self.name, ActorStopped(self.name))
            return False
        self._mailbox.post(Envelope(self._contract.pack(message)))
        return True

    async def ask(self, message: M, *, timeout: float | None = None) -> Any:
        """Send a message and wait for what `receive` returns; `timeout` is in seconds, waiting for room included.

        Raises the actor's rejection, `ContractViolation`, `ActorCrashed`, `ActorStopped`, or `TimeoutError`. A message
        whose asker left or timed out before it was handled is never handled; one that is being handled is
        handled to its end. An actor that asks itself waits for ever.
        """
        if timeout is None:
            return await self._ask(message, None)
        async with asyncio.timeout(timeout):
            return await self._ask(message, monotonic() + timeout)

    def statistics(self) -> MailboxStatistics:
        """The mailbox's lengths, peak and waiting times."""
        return self._mailbox.statistics()

    async def _ask(self, message: M, deadline: float | None) -> Any:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        envelope = Envelope(self._contract.pack(message), reply, deadline)
        await self._put(message, envelope)
        payload = await reply
        if envelope.error is not None:
            raise envelope.error
        return self._contract.unpack_reply(payload)

    async def _put(self, message: M, envelope: Envelope) -> None:
        try:
            if type(message) in self._contract.urgent:
                self._mailbox.post(envelope)
            else:
                await self._mailbox.put(envelope)
        except MailboxClosed:
            raise ActorStopped(self.name) from None
