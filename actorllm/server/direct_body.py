"""The body of a prepared response, written to its transport without waiting.

`StreamResponse.write` is a coroutine for the sake of clients that read slowly. Where events are written in the call that
delivers them nothing can wait: there the transport is asked for room first. Knows no events.
"""

from aiohttp import web

MAX_BUFFERED_BYTES = 32 * 1024
"""What a client may leave unread before events wait for it; asyncio pauses a transport's writer at 64 KiB."""


class DirectBody:
    """`response` is prepared, and has written something by itself: its headers leave with that."""

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._transport = request.transport
        self._is_chunked = response.chunked

    @property
    def has_room(self) -> bool:
        """Whether the client is there and has read nearly all there was."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and transport.get_write_buffer_size() < MAX_BUFFERED_BYTES

    def write(self, data: bytes) -> None:
        """Send some bytes of the body (RFC 9112, section 7.1: one chunk) if there is a client."""
        if self._transport is not None:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
