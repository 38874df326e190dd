"""Chat over the WebSocket of a running server: `python examples/chat_socket.py [ws://127.0.0.1:8000/v1/chat/ws]`.

The messages are those of `actorllm/server/chat/messages.py`. Each line that you type is a turn; end with Ctrl-D.
"""

import asyncio
import json
import sys

import aiohttp


async def main(url: str) -> None:
    """Send each line, and print the answer as it comes."""
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
        await socket.send_json({"type": "open", "conversation": "main", "sampling": {"max_tokens": 200}})
        while line := await asyncio.to_thread(sys.stdin.readline):
            await socket.send_json({"type": "send", "conversation": "main", "text": line})
            async for frame in socket:
                message = json.loads(frame.data)
                if message["type"] == "delta":
                    print(message["text"], end="", flush=True)
                elif message["type"] in ("finished", "error"):
                    print("" if message["error"] is None else message["error"]["message"])
                    break


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["ws://127.0.0.1:8000/v1/chat/ws"]))
