"""The HTTP application over an engine that does what a test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from actorllm.server.app import create_app, start_site
from actorllm.settings import ServerSettings
from tests.server.fake_engine import FakeEngine


@dataclass
class Fake:
    """A running server with a client; `address` has no final slash."""

    engine: FakeEngine
    address: str
    client: aiohttp.ClientSession

    def post(self, body: dict, path: str = "/v1/completions") -> "asyncio.Task[aiohttp.ClientResponse]":
        """Send a request and read no more of its answer than the head."""

        async def send() -> aiohttp.ClientResponse:
            return await self.client.post(self.address + path, json=body)

        return asyncio.create_task(send())

    async def answer(self, body: dict, path: str = "/v1/completions") -> tuple[int, dict]:
        response = await self.post(body, path)
        return response.status, await response.json()


@asynccontextmanager
async def fake_serving(*, port: int = 0, **settings: Any) -> AsyncIterator[Fake]:
    """A server over a fake engine; keywords are server settings."""
    engine: Any = FakeEngine()
    server = ServerSettings(port=port, **settings)
    runner, address = await start_site(create_app(engine, server), server)
    try:
        async with aiohttp.ClientSession() as client:
            yield Fake(engine, address, client)
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], Any]) -> None:
    """Return when it holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (what is awaited lives in the server, without an event of its own)
            await asyncio.sleep(0.005)
