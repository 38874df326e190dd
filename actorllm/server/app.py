"""The HTTP application: routes, and what holds for all of them (ids, errors, hosts, one log line a request).

Knows the engine's public face only.
"""

import asyncio
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

import actorllm
from actorllm.engine import Engine
from actorllm.errors import ActorLLMError, InvalidRequest, UnknownModel
from actorllm.models.catalog import Catalog
from actorllm.server.api_types import DetokenizeBody, TokenizeBody
from actorllm.server.body import read_body
from actorllm.server.chat.socket import ChatSocketRoute
from actorllm.server.chat_completions import ChatRoute
from actorllm.server.chat_page import ChatPage
from actorllm.server.completions import CompletionRoute
from actorllm.server.generation import Generation
from actorllm.server.keys import ERROR, GENERATION, REQUEST_ID, UPGRADED
from actorllm.server.metrics import Metrics
from actorllm.server.replies import error_body, error_reply, internal_error, json_reply
from actorllm.server.route import read_json
from actorllm.settings import ServerSettings

logger = logging.getLogger("actorllm.requests")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MAX_HEADER = 16 * 1024
POLLED = ("/health", "/metrics")
"""Routes that are asked every few seconds, and not logged unless they fail."""

CLIENT_LEFT = 499
"""The status that stands in the log for a client that did not wait for its answer."""


class Server:
    """Handlers of the routes that do not generate."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        self._plugins = Catalog.discover().listing()

    async def health(self, request: web.Request) -> web.Response:
        if self.engine.is_healthy:
            return json_reply({"status": "ok"})
        return json_reply({"status": "not serving"}, status=503)

    async def show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def version(self, request: web.Request) -> web.Response:
        return json_reply({"version": actorllm.__version__})

    async def models(self, request: web.Request) -> web.Response:
        return json_reply({"object": "list", "data": [self._card(name) for name in self.engine.info.names]})

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.engine.info.names:
            raise UnknownModel(f"model {name!r} is not served here; served: {', '.join(self.engine.info.names)}")
        return json_reply(self._card(name))

    async def plugins(self, request: web.Request) -> web.Response:
        return json_reply({"object": "list", "data": self._plugins})

    async def tokenize(self, request: web.Request) -> web.Response:
        body: TokenizeBody = read_body(await read_json(request), TokenizeBody, context=self.engine.info.context_len)
        ids = await self.engine.encode(body.as_prompt())
        return json_reply({"tokens": ids, "count": len(ids), "max_model_len": self.engine.info.context_len})

    async def detokenize(self, request: web.Request) -> web.Response:
        vocab_size, context_len = self.engine.info.vocab_size, self.engine.info.context_len
        body: DetokenizeBody = read_body(await read_json(request), DetokenizeBody, context=context_len)
        if len(body.tokens) > context_len:  # decoding them holds the event loop
            raise InvalidRequest(
                f"tokens: {len(body.tokens)} are more than the context of {context_len}: send fewer at a time", param="tokens"
            )
        for token_id in body.tokens:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequest(
                    f"tokens: {token_id} is outside of the vocabulary (0 to {vocab_size - 1})", param="tokens"
                )
        return json_reply({"prompt": self.engine.tokenizer.decode(body.tokens, skip_special_tokens=False)})

    def _card(self, name: str) -> dict[str, Any]:
        info = self.engine.info
        return {
            "id": name,
            "object": "model",
            "created": info.created,
            "owned_by": "actorllm",
            "root": info.name,
            "max_model_len": info.context_len,
        }


def create_app(engine: Engine, settings: ServerSettings) -> web.Application:
    """The application over an entered engine."""
    server = Server(engine, settings)
    app = web.Application(
        client_max_size=settings.max_body, middlewares=[_observed(server), _answering, _guarding(settings)]
    )
    app.router.add_post("/v1/completions", CompletionRoute(engine, server.metrics).handle)
    app.router.add_post("/v1/chat/completions", ChatRoute(engine, server.metrics).handle)
    app.router.add_get("/v1/models", server.models)
    app.router.add_get("/v1/models/{name:.+}", server.model)
    app.router.add_get("/v1/plugins", server.plugins)
    app.router.add_get("/health", server.health)
    app.router.add_post("/health", server.health)
    app.router.add_get("/metrics", server.show_metrics)
    app.router.add_get("/version", server.version)
    app.router.add_post("/tokenize", server.tokenize)
    app.router.add_post("/detokenize", server.detokenize)
    page = ChatPage()
    app.router.add_get("/", page.index)
    app.router.add_get("/page/{name}", page.file)
    chat = ChatSocketRoute(engine, server.metrics, settings)
    app.router.add_get("/v1/chat/ws", chat.handle)
    app.router.add_post("/v1/chat/ws", chat.explain)
    app.on_shutdown.append(chat.close_all)
    app.cleanup_ctx.append(_watching_loop(server.metrics))
    return app


async def start_site(app: web.Application, settings: ServerSettings) -> tuple[web.AppRunner, str]:
    """Listen; returns the runner to clean up and the address. Raises OSError if the port cannot be had.

    `handler_cancellation`: without it a waiting handler would not notice that its client has left.
    """
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        max_line_size=MAX_HEADER,
        max_field_size=MAX_HEADER,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError:
        await runner.cleanup()
        raise
    port = runner.addresses[0][1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return runner, f"http://{host}:{port}"


def _watching_loop(metrics: Metrics) -> Callable[[web.Application], AsyncIterator[None]]:
    async def watch(app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(metrics.watch_loop())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    return watch


def _observed(server: Server) -> Any:
    """Gives the request its id, and writes one log line when it is over."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request[REQUEST_ID] = given if SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        began, status = time.monotonic(), CLIENT_LEFT
        try:
            response = await handler(request)
            status = response.status
            if not response.prepared:
                response.headers.setdefault("X-Request-Id", request[REQUEST_ID])
            return response
        finally:
            if UPGRADED in request:  # its handler is cancelled when the connection ends, however that came
                status = 101
            server.metrics.responses.labels(str(status)).inc()
            _log(request, status, time.monotonic() - began)

    return middleware


def _log(request: web.Request, status: int, seconds: float) -> None:
    generation: Generation | None = request.get(GENERATION)
    details = "" if generation is None else " " + generation.log_fields()
    if ERROR in request:
        details += f" error={request[ERROR]}"
    resource = request.match_info.route.resource
    path = resource.canonical if resource else re.sub("[^!-~]", "?", request.rel_url.raw_path[:80])
    level = logging.DEBUG if path in POLLED and status < 400 else logging.INFO
    logger.log(level, "%s %s %s status=%d seconds=%.3f%s", request[REQUEST_ID], request.method, path, status, seconds, details)


@web.middleware
async def _answering(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error becomes an answer of one shape; only ours say more than their status."""
    try:
        return await handler(request)
    except ActorLLMError as error:
        request[ERROR] = type(error).__name__
        return error_reply(error)
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        code = type(error).__name__.removeprefix("HTTP")
        return json_reply(error_body(_refusal(request, error), error.status, code=code), status=error.status, headers=headers)
    except ConnectionError:
        return web.Response(status=CLIENT_LEFT)  # nobody reads it, and aiohttp would log this as an error of ours
    except asyncio.CancelledError:
        raise
    except Exception:  # boundary: HTTP handler
        request[ERROR] = "internal"
        logging.getLogger(__name__).exception("request %s failed", request[REQUEST_ID])
        return json_reply(internal_error(), status=500)


def _refusal(request: web.Request, error: web.HTTPException) -> str:
    """What is wrong and the mend, for what aiohttp refuses by itself."""
    match error:
        case web.HTTPMethodNotAllowed():
            return f"{request.method} is not a method of {request.path[:80]}: use {' or '.join(sorted(error.allowed_methods))}"
        case web.HTTPNotFound():
            routes = sorted({resource.canonical for resource in request.app.router.resources()})
            return f"there is no route {request.path[:80]}; routes are {', '.join(routes)}"
        case web.HTTPRequestEntityTooLarge():
            return f"the body is larger than {request.client_max_size} bytes: send less at once, or serve with a larger --max-body"
    return f"{request.method}: {error.reason}"


def _guarding(settings: ServerSettings) -> Any:
    """On a loopback address only loopback names, and those of allowed sites, are answered: a foreign page cannot rebind a name of
    its own to us."""
    is_guarded = _is_loopback(settings.host)
    allowed = {urlsplit(origin).hostname for origin in settings.allowed_origins}

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = re.sub(r":\d*$", "", request.headers.get("Host", "localhost"))
        if is_guarded and not _is_loopback(name) and name.lower().strip("[]") not in allowed:
            message = (
                f"this server listens on {settings.host} and is not known as {name[:80]!r}: ask for {settings.host}, or, if that is "
                "the name of a proxy before it, serve with --allow-origin https://NAME"
            )
            return json_reply(error_body(message, 403), status=403)
        return await handler(request)

    return middleware


def _is_loopback(host: str) -> bool:
    """Whether this is a name or an address of the machine itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
