"""An actor: private state, and a mailbox through which alone it can be reached.

The annotation of `receive` is its contract. Knows not who runs it: incarnation.py feeds it, supervisor.py restarts it.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from actorllm.runtime.ref import Ref

M = TypeVar("M")


class Actor(ABC, Generic[M]):
    """Subclass it and annotate `receive`. What `__init__` sets is one incarnation's state: a crash discards it.

    `receive` is serial unless `concurrency` allows that many at once. Messages of `urgent` types overtake the others.
    An error of a type in `rejections`, raised by `receive`, answers its one message; any other crashes the
    incarnation. `ref` and `incarnation` (1, 2, ...) are set before `started`.
    """

    concurrency: ClassVar[int] = 1
    urgent: ClassVar[tuple[type, ...]] = ()
    rejections: ClassVar[tuple[type[Exception], ...]] = ()

    ref: Ref[M]
    incarnation: int

    async def started(self) -> None:
        """Called before the first message; raising is a crash. What must happen without a message belongs here."""

    @abstractmethod
    async def receive(self, message: M) -> Any:
        """Handle one message; the returned value answers an `ask`."""

    async def settled(self) -> None:
        """Called once whenever messages have been handled and the mailbox is empty (and no `receive` is running).

        With `concurrency` > 1, messages that arrive meanwhile are received beside it.
        """

    async def stopped(self, error: BaseException | None) -> None:
        """Called last, also when `started` raised; `error` crashed or cancelled this incarnation, None is a normal stop.

        It may be cancelled while it awaits, and must not ask a sibling: that one may be stopping too.
        """
