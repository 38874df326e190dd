"""One life of an actor: from `started` to `stopped`, fed with messages from its mailbox in between.

Knows nothing of restarts: it ends normally when the mailbox is closed and empty, and otherwise with an exception.
"""

import asyncio
from collections.abc import Callable
from time import monotonic

from actorllm.runtime.actor import Actor
from actorllm.runtime.codec import Contract
from actorllm.runtime.faults import ActorCrashed, ActorStopped, ContractViolation, MailboxClosed
from actorllm.runtime.mailbox import Mailbox
from actorllm.runtime.observer import Observer
from actorllm.runtime.ref import Envelope

TURN_LEN = 16  # messages handled in a row before the loop's other tasks get their turn


class Incarnation:
    """Runs `actor`, whose messages come through `mailbox` under `contract`.

    `reason` is why the life ends before its time: set by its own first crash, or by the supervisor before it cancels
    the life because a sibling crashed. Without it, a cancelled life ends because everything ends.
    """

    def __init__(self, actor: Actor, mailbox: Mailbox[Envelope], *, contract: Contract, observer: Observer) -> None:
        self.reason: Exception | None = None
        self._actor = actor
        self._name = actor.ref.name
        self._mailbox = mailbox
        self._contract = contract
        self._observer = observer
        self._num_busy = 0
        self._is_settled = True

    async def run(self, on_started: Callable[[], None]) -> None:
        """Feed the actor until its mailbox is closed and empty; raises its crash. `stopped` has run in any case."""
        try:
            await self._actor.started()
            on_started()
            await self._serve()
        except asyncio.CancelledError as error:
            if _is_cancelled():
                await self._stop(self.reason or error)
                raise
            crash = _stray(error)
        except Exception as error:  # boundary: the actor loop; the supervisor decides what a crash means
            crash = error
        else:
            await self._stop(None)
            return
        self._observer.failed(self._name, crash)
        await self._stop(crash)
        raise crash

    async def _stop(self, error: BaseException | None) -> None:
        try:
            await self._actor.stopped(error)
        except asyncio.CancelledError as cancelled:
            if _is_cancelled():
                raise
            self._observer.failed(self._name, _stray(cancelled))
        except Exception as failure:  # boundary: a clean-up that fails must not hide why the actor stops
            self._observer.failed(self._name, failure)
        finally:
            self._observer.stopped(self._name, error)

    async def _serve(self) -> None:
        if self._actor.concurrency == 1:
            return await self._work()
        names = [f"actor {self._name} worker {number}" for number in range(self._actor.concurrency)]
        workers = [asyncio.create_task(self._work(), name=name) for name in names]
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:  # no TaskGroup: before Python 3.13 it leaves its own cancellation on the task that waits in it
            await _cancel(workers)
        for worker in workers:
            if not worker.cancelled() and (error := worker.exception()) is not None:
                raise self.reason or error

    async def _work(self) -> None:
        """Handle messages one after another; returns when the mailbox is closed and empty."""
        num_in_turn = 0
        task = asyncio.current_task()
        assert task is not None
        while True:
            if self.reason is not None or task.cancelling():  # a worker has crashed, or the actor swallowed its cancellation
                raise asyncio.CancelledError
            if (envelope := self._mailbox.take()) is not None:
                await self._handle(envelope)
            elif not self._is_settled and not self._num_busy:
                await self._settle()
            else:
                try:
                    await self._mailbox.wait()
                except MailboxClosed:
                    return
                num_in_turn = 0
                continue
            num_in_turn += 1
            if num_in_turn == TURN_LEN:
                num_in_turn = 0
                await asyncio.sleep(0)

    async def _settle(self) -> None:
        self._is_settled = True
        self._num_busy += 1
        try:
            await self._actor.settled()
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            self.reason = self.reason or _stray(error)
            raise self.reason from error
        except Exception as error:  # boundary: the actor loop
            self.reason = self.reason or error
            raise
        finally:
            self._num_busy -= 1

    async def _handle(self, envelope: Envelope) -> None:
        if envelope.deadline is not None and monotonic() >= envelope.deadline:
            self._observer.expired(self._name)
            envelope.fail(TimeoutError())
            return
        if envelope.reply is not None and envelope.reply.done():
            return
        try:
            message = self._contract.unpack(envelope.payload)
        except ContractViolation as error:
            self._refuse(envelope, error)
            return
        self._is_settled = False
        self._num_busy += 1
        try:
            began = monotonic()
            reply = await self._actor.receive(message)
            seconds = monotonic() - began
        except asyncio.CancelledError as error:
            if not _is_cancelled():
                raise self._crashed(envelope, _stray(error)) from error
            self._refuse(envelope, ActorCrashed(self._name, self.reason) if self.reason else ActorStopped(self._name))
            raise
        except self._actor.rejections as error:
            self._refuse(envelope, error)
        except Exception as error:  # boundary: the actor loop
            self._crashed(envelope, error)
            raise
        else:
            self._answer(envelope, reply, message_type=type(message), seconds=seconds)
        finally:
            self._num_busy -= 1

    def _answer(self, envelope: Envelope, reply: object, *, message_type: type, seconds: float) -> None:
        if envelope.is_awaited:
            try:
                envelope.answer(self._contract.pack_reply(reply))
            except ContractViolation as error:
                self._refuse(envelope, error)
                return
        self._observer.handled(self._name, message_type, seconds)

    def _refuse(self, envelope: Envelope, error: Exception) -> None:
        self._observer.failed(self._name, error)
        envelope.fail(error)

    def _crashed(self, envelope: Envelope, error: Exception) -> Exception:
        """Tell the asker; returns the error to raise. The first crash of a life is observed at its end, others here."""
        if self.reason is not None:
            self._observer.failed(self._name, error)
        self.reason = self.reason or error
        envelope.fail(ActorCrashed(self._name, error))
        return error


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Return when all `tasks` have ended; being cancelled meanwhile cancels them again."""
    interruption: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        raise interruption


def _is_cancelled() -> bool:
    """Whether somebody cancelled the running task, as opposed to something that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _stray(error: asyncio.CancelledError) -> RuntimeError:
    """The crash of an actor that ended with a cancellation that was not meant for it: nobody else would notice."""
    crash = RuntimeError("the actor awaited something that somebody else cancelled")
    crash.__cause__ = error
    return crash
