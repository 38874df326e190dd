"""What requests must not leave behind: tasks, descriptors, slots, and entries in the engine's tables."""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from actorllm.engine import Engine

GUARD = 60.0


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """At the end there are no tasks and no descriptors that there were not at the beginning. A connection that ends closes its
    socket a little later, so there may have been one more then, and there may be one for a moment now."""
    gc.collect()
    tasks, descriptors = asyncio.all_tasks(), open_descriptors()
    yield
    gc.collect()
    assert asyncio.all_tasks() - tasks == set()
    await until(lambda: open_descriptors() <= descriptors)


def open_descriptors() -> Counter[str]:
    """What the process has open, counted by kind; the number of a descriptor says nothing."""
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            target = os.readlink(f"/proc/self/fd/{name}")
            kinds[target.split(":")[0]] += 1
    return kinds


async def until(is_true: Callable[[], bool]) -> None:
    """Return once it holds; looks at it now and then, because nobody announces it."""
    async with asyncio.timeout(GUARD):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def check_empty(engine: Engine) -> None:
    """Nothing is computed any more, and nothing is kept for a request that ended."""

    def is_empty() -> bool:
        now = engine.statistics()
        return (now.num_open, now.num_running, now.num_waiting, now.slots_in_use) == (0, 0, 0, (0,))

    await until(is_empty)
    await until(lambda: len(engine._house._table) == 0)
    await until(lambda: not engine._house._transcripts.open)
    assert engine.statistics().num_restarts == 0
