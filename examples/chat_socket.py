"""Chat over the WebSocket of a running server: `python examples/chat_socket.py [URL]`. Each line is a turn, Ctrl-D ends."""
import asyncio
import os
import sys

import aiohttp


async def show(socket: aiohttp.ClientWebSocketResponse, ends: asyncio.Queue[None]) -> None:
    async for frame in socket:  # who reads all the time also answers the server's pings
        message = frame.json()  # actorllm/server/chat/messages.py has all of them
        print(message.get("text", ""), end="", flush=True)
        if "error" in message:  # null in the `finished` of an answer that went well
            print((message["error"] or {}).get("message", ""), flush=True)
            ends.put_nowait(None)
    print(f"The server has closed the chat, code {socket.close_code}: 1001 it stops, 4408 nothing was said for long", flush=True)
    os._exit(1)  # the thread that waits for a line cannot be woken


async def main(url: str = "ws://127.0.0.1:8000/v1/chat/ws") -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
        reading = asyncio.create_task(show(socket, ends := asyncio.Queue()))
        await socket.send_json({"type": "open", "conversation": "main", "sampling": {"max_tokens": 200}})
        while line := await asyncio.to_thread(sys.stdin.readline):
            await socket.send_json({"type": "send", "conversation": "main", "text": line})
            await ends.get()
        reading.cancel()


asyncio.run(main(*sys.argv[1:]))
