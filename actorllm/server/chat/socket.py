"""GET /v1/chat/ws: a WebSocket that holds conversations. `messages.py` is the protocol, `session.py` its states.

Frames come in one after the other; each is answered, a malformed one by an `error` frame. Answers run beside the reading, one
task each, and all end with their socket. Close codes: 1001 the server stops, 1009 a frame beyond `chat_max_frame`, 1011 an
internal error, 4408 nothing was said for `chat_idle_timeout`. A client that does not answer pings is dropped.
"""

import asyncio
import logging
import weakref
from collections.abc import Collection
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import UNSET

from actorllm.engine import Engine
from actorllm.errors import ActorLLMError, ForeignOrigin, InvalidRequest
from actorllm.server.chat.answer import Answers
from actorllm.server.chat.frames import JSON_FRAMES, MSGPACK_FRAMES, Address, trouble_of
from actorllm.server.chat.messages import PROTOCOL, FromClient, Hello, Refused, Sampling
from actorllm.server.chat.outbox import Outbox
from actorllm.server.chat.session import ChatSession, StartAnswer, StopAnswer
from actorllm.server.keys import UPGRADED
from actorllm.server.metrics import Metrics
from actorllm.settings import ServerSettings

logger = logging.getLogger(__name__)
IDLE = 4408
PORTS = {"http": 80, "https": 443}
CLOSING_TIMEOUT = 2.0
"""Seconds that a client may take to answer a close frame."""

LAST_WORDS_TIMEOUT = 2.0
"""Seconds that a server which stops leaves its answers to tell their ends; the engine has drained before."""

NO_UPGRADE = (
    "this address is a WebSocket: connect with a WebSocket client, and let a proxy on the way pass the headers Upgrade and Connection"
)


class ChatSocketRoute:
    """The handler, and all sockets that are open."""

    def __init__(self, engine: Engine, metrics: Metrics, settings: ServerSettings) -> None:
        self._engine = engine
        self._metrics = metrics
        self._settings = settings
        self._answers = Answers(engine, metrics)
        self._open: weakref.WeakSet[ChatSocket] = weakref.WeakSet()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one socket to its end. Raises `ForeignOrigin` for a page of another site, `InvalidRequest` without an upgrade."""
        check_origin(request, self._settings.allowed_origins)
        socket = web.WebSocketResponse(
            heartbeat=self._settings.chat_ping_interval,
            max_msg_size=self._settings.chat_max_frame,
            timeout=CLOSING_TIMEOUT,
            compress=False,  # a compressor takes more memory than all else of a socket, and inflates bombs
        )
        if not socket.can_prepare(request):
            raise InvalidRequest(NO_UPGRADE)
        await socket.prepare(request)
        request[UPGRADED] = True
        chat = ChatSocket(socket, self._engine, answers=self._answers, settings=self._settings)
        self._open.add(chat)
        with self._metrics.chat_sockets.track_inprogress():
            await chat.run()
        return socket

    async def explain(self, request: web.Request) -> web.Response:
        """Say why no socket could be opened, which browsers do not tell their pages. Raises `ForeignOrigin`, or `InvalidRequest`
        where nothing speaks against a socket but what a proxy on the way has taken off."""
        check_origin(request, self._settings.allowed_origins)
        raise InvalidRequest(NO_UPGRADE)

    async def close_all(self, app: web.Application) -> None:
        """Tell every client that the server stops, after the ends of its answers."""
        await asyncio.gather(*(chat.stop() for chat in self._open), return_exceptions=True)


class ChatSocket:
    """One socket: reads frames, drives the session, runs answers, and counts idle time."""

    def __init__(self, socket: web.WebSocketResponse, engine: Engine, *, answers: Answers, settings: ServerSettings) -> None:
        self._socket = socket
        self._engine = engine
        self._answers = answers
        self._settings = settings
        self._session = ChatSession(engine.default_params)
        self._outbox = Outbox(JSON_FRAMES)
        self._cancels: dict[str, asyncio.Event] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._idle = asyncio.timeout(None)
        self._is_reading = False

    async def run(self) -> None:
        """Until the client leaves, is idle for too long, or breaks the framing."""
        writing = asyncio.create_task(self._outbox.write_to(self._socket))
        try:
            self._outbox.put(self._hello())
            async with self._idle:
                await self._read()
        except TimeoutError:
            await self._socket.close(code=IDLE, message=b"idle")
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:  # boundary: one socket
            logger.exception("a chat socket failed")
            await self._socket.close(code=WSCloseCode.INTERNAL_ERROR, message=b"internal error")
        finally:
            ending = {writing, *self._running}
            for task in ending:
                task.cancel()
            await asyncio.wait(ending)

    async def stop(self) -> None:
        """Close the socket because the server stops; answers that have ended are told to their ends first."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_TIMEOUT):
                if self._running:
                    await asyncio.wait(self._running)
                await self._outbox.wait_until_sent()
        await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops")

    async def _read(self) -> None:
        self._is_reading = True
        try:
            while True:
                self._restart_idle_clock()
                frame = await self._socket.receive()
                if frame.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                    return
                self._outbox.codec = MSGPACK_FRAMES if frame.type is WSMsgType.BINARY else JSON_FRAMES
                message = self._decoded(frame.data)
                if isinstance(message, Refused) or not self._session.stops_an_answer(message):
                    await self._outbox.wait_for_room()  # who reads no replies may not ask for more, but may stop what runs
                self._handle(message)
        finally:
            self._is_reading = False

    def _decoded(self, frame: str | bytes) -> FromClient | Refused:
        """The message of a frame, or what is answered to a malformed one."""
        try:
            return self._outbox.codec.decode(frame)
        except ActorLLMError as error:
            return refusal(error, self._outbox.codec.address_of(frame))

    def _handle(self, message: FromClient | Refused) -> None:
        if isinstance(message, Refused):
            self._outbox.put(message)
            return
        try:
            effects = self._session.handle(message)
        except ActorLLMError as error:
            self._outbox.put(refusal(error, message))
            return
        for effect in effects:
            match effect:
                case StartAnswer():
                    cancel = self._cancels[effect.conversation] = asyncio.Event()
                    task = asyncio.create_task(self._answer(effect, cancel))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
                case StopAnswer():
                    self._cancels[effect.conversation].set()
                case _:
                    self._outbox.put(effect)

    async def _answer(self, order: StartAnswer, cancel: asyncio.Event) -> None:
        name, turn = order.conversation, order.turn

        def say(text: str) -> None:
            self._outbox.put(self._session.extend(name, turn, text))

        end = await self._answers.generate(order, cancel=cancel, say=say)
        self._outbox.put(
            self._session.finish(name, turn, reason=end.reason, usage=end.usage, timings=end.timings, error=end.error)
        )
        del self._cancels[name]
        self._restart_idle_clock()

    def _restart_idle_clock(self) -> None:
        """The clock stands still while an answer runs; one that ends with its socket finds it stopped."""
        if not self._is_reading:
            return
        now = asyncio.get_running_loop().time()
        self._idle.reschedule(None if self._session.is_answering else now + self._settings.chat_idle_timeout)

    def _hello(self) -> Hello:
        return Hello(
            protocol=PROTOCOL,
            model=self._engine.info.name,
            context_len=self._engine.info.context_len,
            max_frame=self._settings.chat_max_frame,
            idle_timeout=self._settings.chat_idle_timeout,
            defaults=Sampling.of(self._engine.default_params),
        )


def refusal(error: ActorLLMError, sender: FromClient | Address) -> Refused:
    """The `error` that answers a message."""
    ref = UNSET if sender.ref is None else sender.ref
    return Refused(error=trouble_of(error), conversation=getattr(sender, "conversation", None), ref=ref)


def check_origin(request: web.Request, allowed: Collection[str]) -> None:
    """Browsers let any page open a socket anywhere, but say whose page it is: only our own and the allowed may. Raises
    `ForeignOrigin`. A client that is no browser sends no Origin. http and https are alike: whether a proxy has taken the
    encryption off is not known here."""
    origin = request.headers.get("Origin")
    if origin is None or origin in allowed:
        return
    try:
        page = urlsplit(origin)
        is_own = page.scheme in PORTS and _place(page) == _place(urlsplit(f"{page.scheme}://{request.host}"))
    except ValueError:
        is_own = False
    if not is_own:
        raise ForeignOrigin(
            f"pages of {origin[:100]!r} may not open a chat here; if they should, serve with --allow-origin ORIGIN; if they are "
            "this server's own, let the proxy on the way pass the header Host"
        )


def _place(address: SplitResult) -> tuple[str | None, int]:
    return address.hostname, address.port or PORTS[address.scheme]
