"""The device thread: order, results on the loop, errors, and a call that never returns."""

import asyncio
import threading

import pytest
import torch

from actorllm.errors import DeviceError, DeviceLost
from actorllm.execution.device_thread import DeviceThread, device_error

CPU = torch.device("cpu")


async def test_calls_run_in_order_on_one_other_thread() -> None:
    thread = DeviceThread("device", CPU, num_threads=1)
    seen: list[int] = []
    futures = [thread.submit(lambda i=i: (seen.append(i), threading.current_thread().name)) for i in range(20)]
    names = {name for _, name in await asyncio.gather(*futures)}
    assert seen == list(range(20))
    assert names == {"device"}
    assert await thread.submit(torch.get_num_threads) == 1
    assert await thread.submit(torch.is_inference_mode_enabled)
    thread.close()
    assert thread.join(5)


async def test_an_error_reaches_the_caller_and_the_thread_goes_on() -> None:
    thread = DeviceThread("device", CPU)

    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await thread.submit(broken)
    assert await thread.submit(lambda: 5) == 5
    thread.close()


async def test_the_loop_runs_while_a_call_hangs_and_the_thread_can_be_left_behind() -> None:
    thread, release = DeviceThread("device", CPU), threading.Event()
    future = thread.submit(release.wait)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(future, 0.05)
    thread.close()
    assert not thread.join(0.01)
    release.set()
    assert thread.join(5)


def test_a_result_for_a_closed_loop_is_dropped() -> None:
    release = threading.Event()
    thread = DeviceThread("device", CPU)

    async def leave() -> None:
        thread.submit(release.wait)

    asyncio.run(leave())
    release.set()
    thread.close()
    assert thread.join(5)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("shape"), DeviceError),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), DeviceLost),
        (torch.AcceleratorError("device-side assert triggered", 710), DeviceLost),
        (torch.OutOfMemoryError("CUDA error: out of memory"), DeviceError),
        (DeviceLost("gone"), DeviceLost),
    ],
)
def test_sticky_errors_are_told_apart(error: Exception, kind: type[DeviceError]) -> None:
    typed = device_error(error, CPU)
    assert type(typed) is kind
    assert "\n" not in str(typed)
