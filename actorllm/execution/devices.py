"""The ranks of one model: a device thread each, all fed the same steps.

Rank 0's result is the step's; the step is done when all ranks are. When one rank raises, the collectives are broken so
that no other waits for it, and what is queued behind is skipped until `recover`. Outlives the actors that use it. Knows
no actor.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from actorllm.errors import DeviceError, DeviceHung, DeviceLost
from actorllm.execution.device_thread import DeviceThread, call_loop, device_error
from actorllm.execution.runner import Runner
from actorllm.layers.collectives import ThreadRanks
from actorllm.messages import Step, StepDone

Deliver = Callable[[StepDone | None, DeviceError | None], None]


class _Skipped(Exception):
    """The step was not run because an earlier one failed."""


class _Arrivals:
    """Collects the ranks' ends of one step, in whatever threads they come; the last one delivers."""

    def __init__(self, num_ranks: int, deliver: Deliver) -> None:
        self._num_missing = num_ranks
        self._deliver = deliver
        self._lock = threading.Lock()
        self._done: StepDone | None = None
        self._error: DeviceError | None = None
        self._is_consequence = False

    def arrive(self, rank: int, device: torch.device, *, done: StepDone | None, error: BaseException | None) -> None:
        """Rank `rank` is done with the step, one way or the other."""
        with self._lock:
            if error is not None:
                is_consequence = isinstance(error, threading.BrokenBarrierError | _Skipped)
                if self._error is None or (self._is_consequence and not is_consequence):
                    self._error, self._is_consequence = (device_error(error, device), is_consequence)
                    self._error.__cause__ = error
            if rank == 0:
                self._done = done
            self._num_missing -= 1
            if self._num_missing:
                return
        self._deliver(None if self._error else self._done, self._error)


class Devices:
    """The ranks `0 .. n-1` of one model. Use it on one event loop.

    `epoch` is the largest one handed over. `fatal` is set once the devices cannot be used again by this process; every
    later `recover` raises it.
    """

    def __init__(self, threads: Sequence[DeviceThread], runners: Sequence[Runner], *, ranks: Sequence[ThreadRanks] = ()) -> None:
        self._threads = tuple(threads)
        self._runners = tuple(runners)
        self._ranks = tuple(ranks)
        # On a GPU a second thread waits for results, so that the first can launch the next step meanwhile.
        self._readers = tuple(
            DeviceThread(f"{thread.device} results", thread.device) if thread.device.type == "cuda" else None
            for thread in threads
        )
        self._is_broken = False
        self.epoch = 0
        self.fatal: DeviceError | None = None

    @property
    def num_ranks(self) -> int:
        """How many ranks compute one step together."""
        return len(self._threads)

    def run(self, step: Step, deliver: Deliver) -> None:
        """Start the step; `deliver(done, error)` is called on the loop when every rank is done with it.

        Steps come in order and wait for each other. The first step of a larger epoch makes the ranks forget all rows.
        """
        loop = asyncio.get_running_loop()
        is_new = step.epoch > self.epoch
        self.epoch = max(self.epoch, step.epoch)

        def done(result: StepDone | None, error: DeviceError | None) -> None:
            call_loop(loop, self._end, result, error, deliver)

        arrivals = _Arrivals(self.num_ranks, done)
        for rank in range(self.num_ranks):
            self._start(rank, step, is_new=is_new, arrivals=arrivals)

    async def recover(self, timeout: float) -> None:
        """Wait until every rank is idle, then make the collectives usable again.

        Raises the fatal error if there is one, and `DeviceHung` if a rank is not idle after `timeout` seconds.
        """
        if self.fatal is not None:
            raise self.fatal
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(*(thread.submit(_nothing) for thread in self._threads))
                await asyncio.gather(*(reader.submit(_nothing) for reader in self._readers if reader))
        except TimeoutError as error:
            raise self.hung(timeout) from error
        for rank in self._ranks:
            rank.reset()
        self._is_broken = False

    def hung(self, seconds: float) -> DeviceHung:
        """Give the devices up: a step did not return within `seconds`."""
        self._break()
        error = DeviceHung(
            f"a step did not return within {seconds:g} seconds; restart the process, and raise "
            "execution.step_timeout if steps may take longer on this machine"
        )
        self.fatal = self.fatal or error
        return error

    async def close(self, timeout: float = 5.0) -> bool:
        """End the threads after what they have; False if one is stuck and was left behind."""
        threads = [*self._threads, *(reader for reader in self._readers if reader)]
        for thread in threads:
            thread.close()
        ends = await asyncio.gather(*(asyncio.to_thread(thread.join, timeout) for thread in threads))
        return all(ends)

    def _start(self, rank: int, step: Step, *, is_new: bool, arrivals: _Arrivals) -> None:
        thread, runner, reader = (self._threads[rank], self._runners[rank], self._readers[rank])

        def launch() -> Any:
            if self._is_broken:
                raise _Skipped("an earlier step failed")
            if is_new:
                runner.reset()
            pending = runner.sample(runner.forward(step))
            return pending if reader else pending.read()

        def launched(result: Any, error: BaseException | None) -> None:
            if error is None and reader is not None:
                reader.call(result.read, finished)
            else:
                finished(result, error)

        def finished(result: StepDone | None, error: BaseException | None) -> None:
            if error is not None:
                self._break()
            arrivals.arrive(rank, thread.device, done=result, error=error)

        thread.call(launch, launched)

    def _break(self) -> None:
        """No rank starts another step or waits for another rank, until `recover`."""
        self._is_broken = True
        for rank in self._ranks:
            rank.abort()

    def _end(self, done: StepDone | None, error: DeviceError | None, deliver: Deliver) -> None:
        if isinstance(error, DeviceLost):
            self.fatal = self.fatal or error
        deliver(done, error)


def _nothing() -> None:
    """Runs behind everything that was queued before it."""
