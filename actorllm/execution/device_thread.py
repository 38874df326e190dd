"""One thread that owns one device: calls go in, results come back through the event loop.

Only this thread touches the device's tensors and opens its parallel regions (libgomp keeps a pool of threads for each
calling thread). The loop never waits for it, and a thread that never returns can be left behind: it is a daemon.
Knows no model and no message.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

from actorllm.errors import DeviceError, DeviceLost

Deliver = Callable[[Any, BaseException | None], None]


def device_error(error: BaseException, device: torch.device) -> DeviceError:
    """The typed error for what a step raised. An error that CUDA reports is sticky: no later call of this process
    can use the device (`DeviceLost`); running out of memory is not."""
    if isinstance(error, DeviceError):
        return error
    said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    is_out_of_memory = isinstance(error, torch.OutOfMemoryError)
    is_cuda = isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
    if is_cuda and not is_out_of_memory:
        return DeviceLost(f"the device {device} is lost ({said}); restart the process")
    return DeviceError(f"a step raised on {device} ({said})")


class DeviceThread:
    """Runs calls on its own thread, in the order in which they came."""

    def __init__(self, name: str, device: torch.device, *, num_threads: int | None = None) -> None:
        self.device = device
        self._num_threads = num_threads
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Deliver] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Any], deliver: Deliver) -> None:
        """Run `function()` on the thread, then `deliver(result, error)` there too, one of them None."""
        self._calls.put((function, deliver))

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run `function()` on the thread; the future belongs to the running loop."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def deliver(result: Any, error: BaseException | None) -> None:
            call_loop(loop, _settle, future, result, error)

        self.call(function, deliver)
        return future

    def close(self) -> None:
        """Let the thread end after the calls it has; does not wait."""
        self._calls.put(None)

    def join(self, timeout: float) -> bool:
        """Wait until the closed thread has ended; False if it has not within `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)
        stream: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            stream = torch.cuda.stream(torch.cuda.Stream(self.device))
        with stream, torch.inference_mode():
            while (item := self._calls.get()) is not None:
                function, deliver = item
                try:
                    result, error = function(), None
                except BaseException as caught:  # boundary: device thread, the caller gets the error
                    result, error = None, caught
                deliver(result, error)
                del (item, function, deliver, result, error)  # nothing is kept alive while the thread waits


def call_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """`function(*arguments)` on the loop, from any thread; nothing if the loop has closed, for then nobody listens."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
