"""A small server with OpenAI's chat API, whose every answer a test decides."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Reply = Callable[["ChatServer", web.StreamResponse], Any]


@dataclass
class ChatServer:
    """`replies` are called one a request with the open event stream; without one the last message comes back in capitals.

    `bodies` and `keys` are what came with requests. `has_left` is set when a client has gone before its answer's end.
    """

    replies: list[Reply] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    has_left: asyncio.Event = field(default_factory=asyncio.Event)
    models: list[str] = field(default_factory=lambda: ["first", "second"])
    refusal: tuple[int, str] | None = None
    port: int = 0

    async def __aenter__(self) -> "ChatServer":
        app = web.Application()
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def conversation(self) -> list[tuple[str, str]]:
        """The messages of the last request: (role, content)."""
        return [(message["role"], message["content"]) for message in self.bodies[-1]["messages"]]

    async def _list(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization"))
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        if self.refusal is not None:
            status, text = self.refusal
            return web.Response(status=status, text=text)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        try:
            if self.replies:
                await self.replies.pop(0)(self, stream)
            else:
                await send(stream, self.bodies[-1]["messages"][-1]["content"].upper())
                await finish(stream)
        except (asyncio.CancelledError, ConnectionError):
            self.has_left.set()
            raise
        return stream


async def send(stream: web.StreamResponse, *pieces: str) -> None:
    """Chunks with text."""
    for piece in pieces:
        await send_json(stream, {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})


async def send_json(stream: web.StreamResponse, value: object) -> None:
    await stream.write(b"data: " + json.dumps(value).encode() + b"\n\n")


async def finish(stream: web.StreamResponse, reason: str = "stop", *, num_tokens: int | None = None) -> None:
    """The end of an answer, with usage where `num_tokens` is given."""
    await send_json(stream, {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    if num_tokens is not None:
        await send_json(stream, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": num_tokens}})
    await stream.write(b"data: [DONE]\n\n")


def hold(*pieces: str) -> Reply:
    """Send pieces, and then nothing more for as long as the client stays."""

    async def reply(server: ChatServer, stream: web.StreamResponse) -> None:
        await send(stream, *pieces)
        await asyncio.sleep(600)

    return reply
