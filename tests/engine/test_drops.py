"""Requests dropped at random moments leave nothing behind: no slot, no task, no file descriptor.

The moments are seeded and spread over tokenizing, waiting, prefill, decode and finishing. tests/server/test_drops.py does
the same with clients that disconnect.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from actorllm.engine import Engine
from actorllm.messages import SamplingParams
from actorllm.scheduling.request import FinishedRequest
from actorllm.settings import EngineSettings
from tests.leftovers import GUARD, check_empty, nothing_left_behind, until

SettingsFactory = Callable[..., EngineSettings]
NUM_AT_ONCE = 100


class Dropper:
    """Submits requests and drops each at a moment of its own; counts where they were."""

    def __init__(self, engine: Engine, text: str, num_requests: int) -> None:
        self.engine = engine
        self.text = text
        self.random = random.Random(num_requests)
        self.moments: Counter[str] = Counter()
        self.numbers = iter(range(num_requests))

    async def worker(self) -> None:
        """One request after another, as long as there are numbers."""
        for number in self.numbers:
            await self.drop_one(f"request-{number}")

    async def drop_one(self, request_id: str) -> None:
        draw = self.random
        is_long = draw.random() < 0.4  # many chunks of prefill
        prompt = self.text[: 700 if is_long else draw.choice((20, 200))]
        params = SamplingParams(
            max_tokens=draw.randrange(1, 24), n=draw.choice((1, 1, 1, 3)), stop=draw.choice(((), ("e",))), ignore_eos=True
        )
        submission = asyncio.create_task(self.engine.submit(prompt, params, request_id=request_id))
        if draw.random() < 0.3:
            for _ in range(draw.randrange(1, 12)):
                await asyncio.sleep(0)
            submission.cancel()
        try:
            stream = await submission
        except asyncio.CancelledError:
            self.moments["submitting"] += 1
            return
        async with stream:
            if is_long and draw.random() < 0.5:
                await until(lambda: self.has_begun(request_id))
            elif draw.random() < 0.5:
                await asyncio.sleep(draw.random() * 0.05)
            else:
                num_read, num_wanted = 0, draw.choice((0, 1, 4, 1000))
                while num_read < num_wanted and not stream.is_finished:
                    num_read += len(await anext(stream))
        self.moments["streaming"] += 1

    def has_begun(self, request_id: str) -> bool:
        """Whether the request's prefill has begun; also when it has ended since."""
        request = self.engine._house._table.get(request_id)
        return request is None or request.scheduled is not None


def moment_of(record: FinishedRequest) -> str:
    """Where the end found an admitted request."""
    if record.finish != "abort":
        return "finished"
    if record.scheduled is None:
        return "waiting"
    return "decode" if record.output_len else "prefill"


@pytest.mark.parametrize(("depth", "admission", "num_requests"), [(1, "reserve", 300), (2, "optimistic", 1000)])
async def test_dropped_requests_leave_nothing(
    stories_settings: SettingsFactory, golden, *, depth: int, admission: str, num_requests: int
) -> None:
    settings = stories_settings(depth=depth, kv_slots=2048, max_running=16, max_step_tokens=128, admission=admission)
    finished: list[FinishedRequest] = []
    async with Engine(settings) as engine:
        dropper = Dropper(engine, golden.text, num_requests)
        await engine.complete(golden.text[:20], SamplingParams(max_tokens=2))  # what is opened once is open now
        engine.finished_listeners.append(finished.append)
        async with nothing_left_behind():
            async with asyncio.timeout(GUARD), asyncio.TaskGroup() as group:
                for _ in range(NUM_AT_ONCE):
                    group.create_task(dropper.worker())
            await check_empty(engine)
            assert not engine._submissions
        ids = [record.request_id for record in finished]
        assert len(ids) == len(set(ids))
        assert sum(dropper.moments.values()) == num_requests
        assert sum(engine.statistics().num_ended.values()) == num_requests + 1
        moments = dropper.moments + Counter(moment_of(record) for record in finished)
        for moment in ("submitting", "waiting", "prefill", "decode", "finished"):
            assert moments[moment] >= 5, moments
