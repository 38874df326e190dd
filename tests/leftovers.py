"""What requests must not leave behind: tasks, descriptors, slots, and entries in the engine's tables."""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from actorllm.engine import Engine

GUARD = 60.0


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """The tasks and descriptors of the end are those of the beginning."""
    gc.collect()
    tasks, descriptors = asyncio.all_tasks(), open_descriptors()
    yield
    gc.collect()
    assert asyncio.all_tasks() - tasks == set()
    assert open_descriptors() == descriptors


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
