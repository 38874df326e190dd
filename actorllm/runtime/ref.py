"""A reference to an actor: the only way to talk to it. It survives the actor's restarts.

Knows the mailbox and the codec, not who handles the messages.
"""

import asyncio
import time
from typing import Any, Generic, TypeVar

from actorllm.runtime.codec import Codec, ContractViolation
from actorllm.runtime.mailbox import Envelope, Mailbox, MailboxClosed, MailboxStatistics

M = TypeVar("M", contravariant=True)


class ActorCrashed(Exception):
    """The incarnation that handled the message crashed; whether it took effect is unknown."""


class ActorStopped(Exception):
    """The actor has stopped, or stopped before it came to the message."""


class Ref(Generic[M]):
    """Sends messages of type M to the actor called `name`."""

    def __init__(self, name: str, mailbox: Mailbox, codec: Codec, *, urgent: tuple[type, ...]) -> None:
        self.name = name
        self._mailbox = mailbox
        self._codec = codec
        self._urgent = urgent

    async def send(self, message: M) -> None:
        """Put a message in; waits for room unless its type is urgent. Raises `ActorStopped`."""
        await self._put(message, Envelope(self._codec.encode(message)))

    def offer(self, message: M) -> bool:
        """Put a message in the bounded lane without waiting; False when it is full. Raises `ActorStopped`."""
        try:
            return self._mailbox.offer(Envelope(self._codec.encode(message)))
        except MailboxClosed:
            raise ActorStopped(self.name) from None

    def post(self, message: M) -> bool:
        """Put an urgent message in at once; False when the actor has stopped. For callbacks on the loop's thread."""
        if not isinstance(message, self._urgent):
            raise ContractViolation(f"{type(message).__name__} is not urgent for {self.name}")
        try:
            self._mailbox.put_urgent(Envelope(self._codec.encode(message)))
        except MailboxClosed:
            return False
        return True

    async def ask(self, message: M, *, timeout: float | None = None) -> Any:
        """Send a message and wait for what `receive` returns.

        Raises the actor's rejection, `ContractViolation`, `ActorCrashed`, `ActorStopped`, or `TimeoutError` after
        `timeout` seconds; the deadline travels with the message.
        """
        reply: asyncio.Future = asyncio.get_running_loop().create_future()
        deadline = None if timeout is None else time.monotonic() + timeout
        envelope = Envelope(self._codec.encode(message), reply, deadline)
        try:
            async with asyncio.timeout(timeout):
                await self._put(message, envelope)
                data = await reply
        finally:
            reply.cancel()  # an envelope still in the mailbox is now stale
        return self._codec.decode_reply(data)

    def statistics(self) -> MailboxStatistics:
        return self._mailbox.statistics()

    async def _put(self, message: M, envelope: Envelope) -> None:
        try:
            if isinstance(message, self._urgent):
                self._mailbox.put_urgent(envelope)
            else:
                await self._mailbox.put(envelope)
        except MailboxClosed:
            raise ActorStopped(self.name) from None
