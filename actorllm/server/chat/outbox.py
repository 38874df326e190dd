"""What a chat socket has still to send: in order, and never much of it.

While a client reads slowly, the deltas of an answer are merged into one, and whoever puts replies waits for room: the memory
of a socket is bounded by `MAX_WAITING_BYTES`, one reply more, and the running answers' text. Knows no conversations.
"""

import asyncio
from collections import deque

from aiohttp import web

from actorllm.server.chat.frames import FrameCodec
from actorllm.server.chat.messages import Delta, FromServer

MAX_WAITING_BYTES = 256 * 1024


class Outbox:
    """Messages of one socket on their way. `codec` is how the next ones are encoded."""

    def __init__(self, codec: FrameCodec) -> None:
        self.codec = codec
        self.num_bytes = 0
        """Bytes of replies that wait; deltas do not count."""
        self._waiting: deque[tuple[FrameCodec, bytes] | list[Delta]] = deque()
        self._growing: dict[tuple[str, int], list[Delta]] = {}
        self._arrival = asyncio.Event()
        self._room = asyncio.Event()
        self._is_sent = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: FromServer) -> None:
        """Append a message; a delta joins the one of its turn that waits, unless a reply came between them, which may have
        told the text so far."""
        if isinstance(message, Delta):
            key = message.conversation, message.turn
            if key not in self._growing:
                self._growing[key] = []
                self._waiting.append(self._growing[key])
            self._growing[key].append(message)
        else:
            frame = self.codec.encode(message)
            self._growing.clear()
            self._waiting.append((self.codec, frame))
            self.num_bytes += len(frame)
        self._is_sent.clear()
        self._arrival.set()

    async def wait_for_room(self) -> None:
        """Return when few enough bytes wait."""
        while self.num_bytes > MAX_WAITING_BYTES:
            self._room.clear()
            await self._room.wait()

    async def wait_until_sent(self) -> None:
        """Return when the transport has every message that was put, or when nobody reads them any more."""
        if self._waiting:
            await self._is_sent.wait()

    async def write_to(self, socket: web.WebSocketResponse) -> None:
        """Send until cancelled, or until the client is gone."""
        try:
            while True:
                await self._arrival.wait()
                self._arrival.clear()
                while self._waiting:
                    await self._send(socket, *self._take())
                self._is_sent.set()
        except ConnectionError:
            self.num_bytes = 0  # nobody reads this any more: whoever waits for room learns of it from the socket
            self._room.set()
            self._is_sent.set()

    def _take(self) -> tuple[FrameCodec, bytes]:
        """The next frame."""
        entry = self._waiting.popleft()
        if isinstance(entry, list):
            first = entry[0]
            if self._growing.get(key := (first.conversation, first.turn)) is entry:
                del self._growing[key]
            whole = Delta(conversation=first.conversation, turn=first.turn, text="".join(delta.text for delta in entry))
            return self.codec, self.codec.encode(whole)
        self.num_bytes -= len(entry[1])
        self._room.set()
        return entry

    @staticmethod
    async def _send(socket: web.WebSocketResponse, codec: FrameCodec, frame: bytes) -> None:
        """aiohttp waits here once its own buffer is full."""
        if codec.is_binary:
            await socket.send_bytes(frame)
        else:
            await socket.send_str(frame.decode())
