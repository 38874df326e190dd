"""An actor: private state, and a mailbox through which alone it can be reached.

`receive`'s annotation is the contract. The loop that feeds an incarnation is here too; who starts and restarts
incarnations is the supervisor's business.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from actorllm.runtime.codec import Codec, ContractViolation
from actorllm.runtime.mailbox import Envelope, Mailbox, MailboxClosed
from actorllm.runtime.observer import Observer
from actorllm.runtime.ref import ActorCrashed, ActorStopped, Ref

M = TypeVar("M")


class Actor(ABC, Generic[M]):
    """Subclass it and annotate `receive`. State set in `__init__` is one incarnation's: a crash discards it.

    `concurrency` > 1 allows that many `receive` at once. Messages of `urgent` types overtake the others. An error
    of `rejections` types answers its one message; any other crashes the incarnation.
    """

    concurrency: ClassVar[int] = 1
    urgent: ClassVar[tuple[type, ...]] = ()
    rejections: ClassVar[tuple[type[Exception], ...]] = ()

    ref: "Ref[M]"
    incarnation: int

    async def started(self) -> None:
        """Called before the first message; raising is a crash."""

    @abstractmethod
    async def receive(self, message: M) -> Any:
        """Handle one message; the returned value answers an `ask`."""

    async def settled(self) -> None:
        """Called once each time the mailbox has been drained."""

    async def stopped(self, error: BaseException | None) -> None:
        """Called last; `error` is what crashed or cancelled this incarnation, None after a normal stop."""


class Incarnation:
    """Feeds one actor object from its mailbox until the mailbox is closed and empty."""

    def __init__(self, actor: Actor, mailbox: Mailbox, codec: Codec, observer: Observer) -> None:
        self._actor = actor
        self._mailbox = mailbox
        self._codec = codec
        self._observer = observer
        self._name = actor.ref.name

    async def run(self) -> None:
        """Handle messages; returns after a normal close, raises what `receive` or `settled` raised."""
        if self._actor.concurrency == 1:
            return await self._work()
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._actor.concurrency):
                    workers.create_task(self._work())
        except BaseExceptionGroup as crashes:
            raise crashes.exceptions[0] from None

    async def _work(self) -> None:
        while True:
            try:
                envelope = await self._mailbox.get()
            except MailboxClosed:
                return
            await self._handle(envelope)
            if not self._mailbox:
                await self._actor.settled()

    async def _handle(self, envelope: Envelope) -> None:
        begin = time.monotonic()
        if envelope.is_stale(begin):
            self._observer.expired(self._name)
            return
        try:
            message = self._codec.decode(envelope.data)
            reply = await self._actor.receive(message)
            if envelope.reply is not None:
                _answer(envelope, self._codec.encode_reply(reply))
        except (ContractViolation, *self._actor.rejections) as error:
            self._observer.failed(self._name, error)
            _refuse(envelope, error)
            return
        except asyncio.CancelledError:
            _refuse(envelope, ActorStopped(f"{self._name} stopped while it handled the message"))
            raise
        except Exception as error:  # boundary: the actor loop tells the asker, the supervisor decides
            _refuse(envelope, ActorCrashed(f"{self._name}: {type(error).__name__}: {error}"))
            raise
        self._observer.handled(self._name, type(message), time.monotonic() - begin)


def _answer(envelope: Envelope, data: Any) -> None:
    if envelope.reply is not None and not envelope.reply.done():
        envelope.reply.set_result(data)


def _refuse(envelope: Envelope, error: Exception) -> None:
    if envelope.reply is not None and not envelope.reply.done():
        envelope.reply.set_exception(error)


def refuse_rest(mailbox: Mailbox, error: Exception) -> None:
    """Close the mailbox and answer everybody who still waits with `error`."""
    for envelope in mailbox.close_and_empty():
        _refuse(envelope, error)
