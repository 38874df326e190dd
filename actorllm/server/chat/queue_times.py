"""How long requests waited for the device, by the name that their generation has.

The engine tells it when a request's slots are back, which may be a moment after its last token. Knows no routes.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from actorllm.engine import Engine
from actorllm.scheduling.request import FinishedRequest

RECORD_TIMEOUT = 1.0
"""Seconds to wait for a record that comes right after the last token or, when the engine has failed, never."""


class QueueTimes:
    """Listens to the engine for the records that are expected."""

    def __init__(self, engine: Engine) -> None:
        self._expected: dict[str, asyncio.Future[FinishedRequest]] = {}
        engine.finished_listeners.append(self._told)

    @contextmanager
    def expecting(self, generation_id: str) -> Iterator["asyncio.Future[FinishedRequest]"]:
        """The record of a generation's only request, to be entered before the request is submitted."""
        record = self._expected[generation_id] = asyncio.get_running_loop().create_future()
        try:
            yield record
        finally:
            del self._expected[generation_id]

    def _told(self, record: FinishedRequest) -> None:
        expected = self._expected.get(record.request_id.rpartition("-")[0])
        if expected is not None and not expected.done():
            expected.set_result(record)


async def queue_seconds(record: "asyncio.Future[FinishedRequest]") -> float | None:
    """Seconds from a request's arrival to its first step; None if it never ran."""
    with suppress(TimeoutError):
        found = await asyncio.wait_for(asyncio.shield(record), RECORD_TIMEOUT)
        if found.scheduled is not None:
            return found.scheduled - found.arrived
    return None
