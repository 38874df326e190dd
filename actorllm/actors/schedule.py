"""The schedule actor: a thin shell of messages and timers around `scheduling.scheduler.Scheduler`.

It plans once a burst of messages has been handled (`settled`), and sends the next step before the last one's
outputs: the device should not wait for text. Each incarnation is a new epoch over the same request table.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from actorllm.errors import RequestError
from actorllm.messages import Abort, Admit, Outputs, StepDone, StopFound, Tick
from actorllm.runtime.actor import Actor
from actorllm.runtime.ref import Ref
from actorllm.scheduling.request import FinishedRequest
from actorllm.scheduling.scheduler import Scheduler


class ScheduleActor(Actor[Admit | Abort | StopFound | StepDone | Tick]):
    """`new_scheduler` builds the next epoch's scheduler over the surviving table; `on_finished` hears of each request
    whose slots are back. `unsent` and `unheard` outlive an incarnation as the table does: what was taken for detokenize and
    waits for room there, and which requests it was told to end."""

    urgent = (Abort, StopFound, StepDone, Tick)
    rejections = (RequestError,)

    def __init__(
        self,
        new_scheduler: Callable[[], Scheduler],
        *,
        execute: Ref,
        detokenize: Ref,
        unsent: deque[Outputs],
        unheard: deque[StopFound | Abort],
        on_finished: Callable[[FinishedRequest], None],
    ) -> None:
        self._scheduler = new_scheduler()
        self._unsent = unsent
        self._unheard = unheard
        self._on_finished = on_finished
        self._execute = execute
        self._detokenize = detokenize
        self._timer: asyncio.TimerHandle | None = None

    async def started(self) -> None:
        self._end_requests()
        await self._round()

    async def receive(self, message: Admit | Abort | StopFound | StepDone | Tick) -> None:
        match message:
            case StepDone():
                self._scheduler.complete(message)
            case Admit():
                self._scheduler.add(message, time.monotonic())
            case StopFound() | Abort():
                self._unheard.append(message)
                self._end_requests()
            case Tick():
                pass  # the round that follows looks at the clock

    async def settled(self) -> None:
        await self._round()

    async def stopped(self, error: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end_requests(self) -> None:
        """Nobody says it again, so each is forgotten only when it has been done."""
        while self._unheard:
            match self._unheard[0]:
                case StopFound() as found:
                    self._scheduler.stop(found)
                case Abort(request_id):
                    self._scheduler.abort(request_id)
            self._unheard.popleft()

    async def _round(self) -> None:
        self._scheduler.expire(time.monotonic())
        while (step := self._scheduler.plan(time.monotonic())) is not None:
            await self._execute.send(step)
        if (outputs := self._scheduler.take_outputs()) is not None:
            self._unsent.append(outputs)
        while self._unsent:
            await self._detokenize.send(self._unsent[0])  # cancelled, by a crash of execute: was not sent
            self._unsent.popleft()
        for record in self._scheduler.take_finished():
            self._on_finished(record)
        self._set_timer()

    def _set_timer(self) -> None:
        deadline = self._scheduler.next_deadline()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            delay = max(deadline - time.monotonic(), 0.0) + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay, self.ref.post, Tick())
