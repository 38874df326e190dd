"""A real server on a real socket, over the echo model or the real small one."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import actorllm_echo
from actorllm.engine import Engine
from actorllm.server.app import create_app, start_site
from actorllm.settings import (
    EngineSettings,
    ExecutionSettings,
    ModelSettings,
    RuntimeSettings,
    SchedulingSettings,
    ServerSettings,
)
from tests.message_form import ENCODE
from tests.server.fake_server import Fake, fake_serving


@dataclass
class Served:
    """A running server with a client; `address` has no final slash."""

    engine: Engine
    address: str
    client: aiohttp.ClientSession

    async def post(self, path: str, body: object) -> tuple[int, dict]:
        async with self.client.post(self.address + path, json=body) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, dict]:
        async with self.client.get(self.address + path) as response:
            return response.status, await response.json()


@asynccontextmanager
async def serving(
    path: Path | None = None, *, kv_slots: int = 4096, tensor_parallel: int = 1, **scheduling: Any
) -> AsyncIterator[Served]:
    """A server over a model folder, the echo model's if none is named; further keywords are scheduling settings."""
    settings = EngineSettings(
        model=ModelSettings(path=str(path or actorllm_echo.directory()), served_names=() if path else ("echo",)),
        execution=ExecutionSettings(threads=1, kv_slots=kv_slots, tensor_parallel=tensor_parallel),
        scheduling=SchedulingSettings(**scheduling),
        runtime=RuntimeSettings(encode=ENCODE),
    )
    async with Engine(settings) as engine:
        server = ServerSettings(port=0)
        runner, address = await start_site(create_app(engine, server), server)
        try:
            async with aiohttp.ClientSession() as client:
                yield Served(engine, address, client)
        finally:
            await runner.cleanup()


async def post_bytes(served: Served, path: str, data: bytes) -> tuple[int, dict]:
    """As a client that has the whole body ready."""
    host, _, port = served.address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + data)
    answer = await reader.read()
    writer.close()
    headers, _, text = answer.partition(b"\r\n\r\n")
    return int(headers.split()[1]), json.loads(text)


@pytest.fixture
async def echo() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest.fixture
async def stories(stories_dir: Path) -> AsyncIterator[Served]:
    async with serving(stories_dir) as served:
        yield served


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    async with fake_serving() as served:
        yield served
