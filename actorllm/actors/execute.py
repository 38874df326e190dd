"""The execute actor: steps go to the devices, results to schedule.

It never waits for a step: up to the pipeline's depth are under way. A step that raises, or that does not come back in
time, crashes the actor, and the supervisor restarts it together with schedule. Knows nothing of what a step holds.
"""

import asyncio
from collections.abc import Callable

from msgspec import Struct

from actorllm.errors import DeviceError
from actorllm.execution.devices import Devices
from actorllm.messages import Failure, Step, StepDone
from actorllm.runtime.actor import Actor


class StepFailed(Struct, frozen=True, tag=True):
    """Urgent, execute to itself: a step of this incarnation failed."""

    incarnation: int
    failure: Failure


class ExecuteActor(Actor[Step | StepFailed]):
    """`deliver` takes each `StepDone` on the event loop and must not block (`schedule.post`).

    An incarnation drops the steps of epochs that were handed over before it started: leftovers of the mailbox.
    """

    urgent = (StepFailed,)

    def __init__(self, devices: Devices, *, deliver: Callable[[StepDone], None], step_timeout: float) -> None:
        self._devices = devices
        self._deliver = deliver
        self._step_timeout = step_timeout
        self._stale_epoch = devices.epoch
        self._num_running = 0
        self._is_over = False
        self._watchdog: asyncio.TimerHandle | None = None

    async def started(self) -> None:
        """Wait for what the last incarnation left on the devices; raises the fatal error of lost devices."""
        await self._devices.recover(self._step_timeout)

    async def receive(self, message: Step | StepFailed) -> None:
        match message:
            case Step():
                if message.epoch > self._stale_epoch:
                    self._num_running += 1
                    self._devices.run(message, self._finished)
                    if self._num_running == 1:
                        self._watch()
            case StepFailed(incarnation, failure):
                if incarnation == self.incarnation:
                    raise failure.error()

    async def stopped(self, error: BaseException | None) -> None:
        self._is_over = True
        self._watch()

    def _finished(self, done: StepDone | None, error: DeviceError | None) -> None:
        """On the loop, when a step is done."""
        if self._is_over:
            return
        self._num_running -= 1
        self._watch()
        if error is not None:
            self._fail(error)
        elif done is not None:
            self._deliver(done)

    def _watch(self) -> None:
        """Set the watchdog for the oldest running step: it runs alone since the one before it has ended."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._num_running and not self._is_over:
            loop = asyncio.get_running_loop()
            self._watchdog = loop.call_later(self._step_timeout, self._hang)

    def _hang(self) -> None:
        self._fail(self._devices.hung(self._step_timeout))

    def _fail(self, error: DeviceError) -> None:
        self.ref.post(StepFailed(self.incarnation, Failure.of(error)))
