"""A chat client for tests: JSON or msgpack frames over a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

WAIT = 30


class ChatClient:
    """One open socket. Messages are dicts as they are in JSON."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, *, is_binary: bool = False) -> None:
        self.socket = socket
        self.hello: dict = {}
        self._is_binary = is_binary
        self._num_asked = 0

    async def send(self, kind: str, **fields: Any) -> None:
        message = {"type": kind, **fields}
        if self._is_binary:
            await self.socket.send_bytes(msgspec.msgpack.encode(message))
        else:
            await self.socket.send_str(json.dumps(message))

    async def receive(self) -> dict:
        """The next message of the server."""
        frame = await self.socket.receive(WAIT)
        assert frame.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), frame
        return json.loads(frame.data) if frame.type is aiohttp.WSMsgType.TEXT else msgspec.msgpack.decode(frame.data)

    async def ask(self, kind: str, **fields: Any) -> dict:
        """Send a message and return the first reply to it."""
        self._num_asked += 1
        ref = f"{kind} {self._num_asked}"
        await self.send(kind, ref=ref, **fields)
        while (message := await self.receive()).get("ref") != ref:
            pass
        return message

    async def until(self, kind: str) -> list[dict]:
        """Messages up to the first of this kind, which is the last one."""
        messages = [await self.receive()]
        while messages[-1]["type"] != kind:
            messages.append(await self.receive())
        return messages

    async def answer(self) -> tuple[str, dict]:
        """The text of the answer under way, and its `finished`."""
        messages = await self.until("finished")
        return "".join(message["text"] for message in messages if message["type"] == "delta"), messages[-1]

    async def closed(self) -> int | None:
        """The close code, once the server has closed the socket."""
        async with asyncio.timeout(WAIT):
            async for _ in self.socket:
                pass
        return self.socket.close_code


@asynccontextmanager
async def chatting(
    client: aiohttp.ClientSession, address: str, *, is_binary: bool = False, **options: Any
) -> AsyncIterator[ChatClient]:
    """A chat socket at a server's address."""
    async with client.ws_connect(address + "/v1/chat/ws", max_msg_size=0, **options) as socket:
        chat = ChatClient(socket, is_binary=is_binary)
        chat.hello = await chat.receive()
        yield chat
