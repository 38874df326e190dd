"""1,000 clients that close their sockets leave nothing behind: no slot, no task, no file descriptor.

They leave while their request is tokenized, waits, is in the middle of its prefill, decodes, or has just finished: each
closes at the very moment at which the engine's own ledger says so, and only those are counted.
"""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from actorllm.engine import Engine
from actorllm.execution.runner import ResidentRunner
from actorllm.scheduling.request import FinishedRequest
from actorllm.tokenizer.load import Tokenizer
from tests.leftovers import GUARD, check_empty, nothing_left_behind, until
from tests.server.conftest import Served, serving

MOMENTS = ("tokenizing", "waiting", "prefill", "decode", "finishing")
NUM_EACH = 200
NUM_AT_ONCE = 48
PATHS = {"/v1/completions": "prompt", "/v1/chat/completions": "messages"}


@pytest.fixture
def slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizing and steps take a few milliseconds, so that somebody can leave meanwhile."""
    forward, encode = ResidentRunner.forward, Tokenizer.encode

    def forward_slowly(runner: ResidentRunner, step: Any) -> Any:
        time.sleep(0.002)
        return forward(runner, step)

    async def encode_slowly(*arguments: Any, **keywords: Any) -> Any:
        await asyncio.sleep(0.005)
        return await encode(*arguments, **keywords)

    monkeypatch.setattr(ResidentRunner, "forward", forward_slowly)
    monkeypatch.setattr(Tokenizer, "encode", encode_slowly)


class Ledger:
    """Where the engine says that its requests are."""

    def __init__(self, engine: Engine) -> None:
        self._house = engine._house
        self._streams = engine._streams

    def moments(self) -> dict[str, str]:
        """X-Request-Id -> the moment its request is in; what is between two moments is left out."""
        found = {_client_id(request_id): "tokenizing" for request_id in self._streams._open}
        stays = {stay.sequence.request.request_id: stay for stay in self._house._scheduler._residents.running}
        for request in self._house._table:
            name, stay = _client_id(request.request_id), stays.get(request.request_id)
            if request.scheduled is None:
                found[name] = "waiting"
            elif stay is not None and 0 < stay.num_planned < request.prompt_len:
                found[name] = "prefill"
            elif request.sequences[0].output_ids and not request.is_finished:
                found[name] = "decode"
            else:
                found.pop(name, None)
        return found

    def is_undelivered(self, record: FinishedRequest) -> bool:
        """Whether a request's end has not been given to its stream, and so not to its client."""
        return record.request_id in self._streams._open and record.finish == "length"


@dataclass
class Client:
    """A bare socket that sends one request and is closed from outside."""

    name: str
    moment: str
    writer: asyncio.StreamWriter
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    is_met: bool = False

    def leave(self, *, is_met: bool) -> None:
        """Close now: by a reset or by an end of file."""
        if self.closed.is_set():
            return
        self.is_met = is_met
        if len(self.name) % 2:
            self.writer.transport.abort()
        else:
            self.writer.close()
        self.closed.set()


class Leavers:
    """Sends requests, and closes each at the moment it is meant for."""

    def __init__(self, served: Served) -> None:
        self.ledger = Ledger(served.engine)
        self.port = int(served.address.rsplit(":", 1)[1])
        self.random = random.Random(11)
        self.open: dict[str, Client] = {}
        self.met: Counter[tuple[str, bool]] = Counter()
        self.num_sent = 0
        self.jobs = [(moment, number % 2 == 0) for moment in MOMENTS for number in range(NUM_EACH)]
        self.random.shuffle(self.jobs)
        served.engine.finished_listeners.append(self._finished)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            async with asyncio.TaskGroup() as workers:
                for _ in range(NUM_AT_ONCE):
                    workers.create_task(self._work())
            watching.cancel()

    async def _work(self) -> None:
        while self.jobs:
            moment, is_streamed = self.jobs.pop()
            while not await self._drop(moment, is_streamed=is_streamed):
                pass

    async def _drop(self, moment: str, *, is_streamed: bool) -> bool:
        """One request; whether its client left at its moment."""
        self.num_sent += 1
        name = f"r{self.num_sent}"
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        client = self.open[name] = Client(name, moment, writer)
        writer.write(self._request(name, moment, is_streamed=is_streamed))
        await client.closed.wait()
        del self.open[name]
        self.met[moment, is_streamed] += client.is_met
        return client.is_met

    def _request(self, name: str, moment: str, *, is_streamed: bool) -> bytes:
        path = self.random.choice(list(PATHS))
        text = "".join(self.random.choices("abcdefgh ", k=400 if moment == "prefill" else 40))
        prompt = text if path == "/v1/completions" else [{"role": "user", "content": text}]
        max_tokens = self.random.randrange(1, 4) if moment == "finishing" else 300
        fields = {PATHS[path]: prompt, "max_tokens": max_tokens, "stream": is_streamed, "ignore_eos": True}
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Request-Id: {name}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def _watch(self) -> None:
        while True:
            moments = self.ledger.moments()
            for name, client in list(self.open.items()):
                now = moments.get(name)
                if now == client.moment:
                    client.leave(is_met=True)
                elif now is not None and MOMENTS.index(now) > MOMENTS.index(client.moment):
                    client.leave(is_met=False)
            await asyncio.sleep(0.0005)

    def _finished(self, record: FinishedRequest) -> None:
        client = self.open.get(_client_id(record.request_id))
        if client is not None:
            client.leave(is_met=client.moment == "finishing" and self.ledger.is_undelivered(record))


def _client_id(request_id: str) -> str:
    """The X-Request-Id in the engine's name of a request."""
    return request_id.split("-")[1]


async def test_clients_that_leave_at_any_moment_leave_nothing(slow_parts: None) -> None:
    async with serving(max_running=8, max_step_tokens=64, depth=2) as served:
        for path, prompt in (("/v1/completions", "a"), ("/v1/chat/completions", [{"role": "user", "content": "a"}])):
            assert (await served.post(path, {PATHS[path]: prompt, "max_tokens": 2}))[0] == 200  # what is opened once is open now
        num_before = sum(served.engine.statistics().num_ended.values())
        tasks = asyncio.all_tasks()
        async with nothing_left_behind():
            leavers = Leavers(served)
            async with asyncio.timeout(GUARD):
                await leavers.run()
            await check_empty(served.engine)
            await until(lambda: asyncio.all_tasks() <= tasks)  # the server's connections end when they see that nobody is there
            assert not served.engine._submissions
        for moment in MOMENTS:
            for is_streamed in (False, True):
                assert leavers.met[moment, is_streamed] == NUM_EACH // 2, leavers.met
        ended = served.engine.statistics().num_ended
        assert sum(ended.values()) == num_before + leavers.num_sent and ended["error"] == 0
        assert ended["abort"] >= NUM_EACH * (len(MOMENTS) - 1)  # all but those that left at the end: nothing ran on for nobody
        assert (await served.post("/v1/completions", {"prompt": "a", "max_tokens": 2}))[0] == 200
