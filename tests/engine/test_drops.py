"""Requests dropped at random moments leave nothing behind: no slot, no task, no file descriptor.

The moments are seeded and spread over tokenizing, waiting, prefill, decode and finishing.
"""

import asyncio
import gc
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import aiohttp
import pytest

from actorllm.engine import Engine
from actorllm.messages import SamplingParams
from actorllm.scheduling.request import FinishedRequest
from actorllm.server.app import create_app, start_site
from actorllm.settings import EngineSettings, ServerSettings

SettingsFactory = Callable[..., EngineSettings]
NUM_AT_ONCE = 100
NUM_HTTP = 100
GUARD = 60.0


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
        with nothing_left_behind():
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



class Client:
    """HTTP clients that close their sockets in the middle."""

    def __init__(self, address: str, text: str) -> None:
        self.url = f"{address}/v1/completions"
        self.text = text
        self.random = random.Random(7)
        self.moments: Counter[str] = Counter()

    async def drop_one(self) -> None:
        draw = self.random
        is_streamed = draw.random() < 0.5
        body = {"prompt": self.text[: draw.choice((20, 700))], "max_tokens": 300, "stream": is_streamed, "ignore_eos": True}
        seconds, num_lines = draw.random() * 0.3, draw.choice((0, 1, 8))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            request = asyncio.create_task(session.post(self.url, json=body))
            await asyncio.wait({request}, timeout=GUARD if is_streamed and num_lines else seconds)
            if not request.done():
                request.cancel()
                await asyncio.wait({request})
                self.moments["streamed" if is_streamed else "whole"] += 1
                return
            response = request.result()
            assert response.status == 200
            for _ in range(num_lines):
                assert await response.content.readline()
            self.moments["mid-stream"] += 1
            response.close()


async def test_clients_that_leave_free_everything(stories_settings: SettingsFactory, golden) -> None:
    settings = stories_settings(kv_slots=4096, max_running=16, max_step_tokens=128)
    server_settings = ServerSettings(port=0)
    async with Engine(settings) as engine:
        await engine.complete(golden.text[:20], SamplingParams(max_tokens=2))
        with nothing_left_behind():
            runner, address = await start_site(create_app(engine, server_settings), server_settings)
            client = Client(address, golden.text)
            async with asyncio.timeout(GUARD), asyncio.TaskGroup() as group:
                for _ in range(NUM_HTTP):
                    group.create_task(client.drop_one())
            await check_empty(engine)
            async with aiohttp.ClientSession() as session, asyncio.timeout(GUARD):
                async with session.post(f"{address}/v1/completions", json={"prompt": "Once", "max_tokens": 4}) as response:
                    assert (await response.json())["usage"]["completion_tokens"] == 4
            await runner.cleanup()
        assert engine.statistics().num_ended["abort"] >= NUM_HTTP // 2
        assert engine.statistics().num_ended["error"] == 0
        for moment in ("streamed", "whole", "mid-stream"):
            assert client.moments[moment] >= 5, client.moments
