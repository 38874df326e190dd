"""Who answers in the terminal: a server with OpenAI's API somewhere, or an engine in this process. Knows no terminal."""

import json
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple, Protocol

import aiohttp
import msgspec

from actorllm.errors import InvalidRequest, NoChatTemplate, RemoteError
from actorllm.settings import EngineSettings

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds for a server to take a connection. An answer may take as long as it likes: Ctrl-C is there."""

LIST_TIMEOUT = 30.0
"""Seconds for a server to say what it serves."""

MAX_ERROR_LEN = 500
MAX_EVENT_BYTES = 2**24


class Delta(NamedTuple):
    """A piece of an answer. `num_tokens` is what the answer has so far, where that is known; `finish` says why it ended."""

    text: str
    num_tokens: int | None = None
    finish: str | None = None


class ChatModel(Protocol):
    """Answers conversations."""

    name: str
    context_len: int | None

    def answer(self, messages: Sequence[Mapping[str, str]]) -> AsyncGenerator[Delta, None]:
        """The answer to the last turn, as it comes; leaving early stops it. Raises `ActorLLMError`."""
        ...


class LocalModel:
    """An engine in this process; `sampling` overrides fields of the checkpoint's defaults."""

    def __init__(self, engine: Any, sampling: Mapping[str, Any]) -> None:
        self._engine = engine
        self._params = msgspec.structs.replace(engine.default_params, **sampling)
        self.name: str = engine.info.name
        self.context_len: int | None = engine.info.context_len

    async def answer(self, messages: Sequence[Mapping[str, str]]) -> AsyncGenerator[Delta, None]:
        num_tokens = 0
        async with aclosing(self._engine.generate(messages, self._params)) as events:
            async for event in events:
                num_tokens += event.token_id >= 0
                yield Delta(event.text, num_tokens, event.finish)


class RemoteModel:
    """A model of a server with OpenAI's API; `sampling` are fields of the request's body."""

    def __init__(self, session: aiohttp.ClientSession, base: str, *, name: str, sampling: Mapping[str, Any]) -> None:
        self._session = session
        self._base = base
        self._sampling = sampling
        self.name = name
        self.context_len: int | None = None

    async def answer(self, messages: Sequence[Mapping[str, str]]) -> AsyncGenerator[Delta, None]:
        body = {
            "model": self.name,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling,
        }
        has_finished = False
        async with _request(self._session, "POST", f"{self._base}/chat/completions", json=body) as response:
            async for data in server_sent_events(response.content.iter_any()):
                if data == "[DONE]":
                    return
                delta = _delta(data)
                has_finished |= delta.finish is not None
                yield delta
        if not has_finished:
            raise RemoteError(f"{self._base} broke off its answer: try again")


@asynccontextmanager
async def local_model(settings: EngineSettings, sampling: Mapping[str, Any]) -> AsyncIterator[LocalModel]:
    """Load a model into this process. Raises as entering an `Engine` does, and `NoChatTemplate`."""
    from actorllm.engine import Engine  # takes seconds, and a server somewhere needs none of it

    async with Engine(settings) as engine:
        try:
            await engine.encode([{"role": "user", "content": "hello"}])  # starts the template's process as well
        except NoChatTemplate:
            raise
        except InvalidRequest as error:  # this template asks for something else: the user will see whether it gets that
            logger.debug("a greeting cannot be rendered: %s", error.message)
        yield LocalModel(engine, sampling)


@asynccontextmanager
async def remote_model(
    url: str, name: str | None, *, sampling: Mapping[str, Any], api_key: str | None = None
) -> AsyncIterator[RemoteModel]:
    """The model `name` of the server at `url`, or the first that it lists. Raises `RemoteError`."""
    base = api_base(url)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),  # a server that was restarted is found again
        headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
        trust_env=True,
    ) as session:
        yield RemoteModel(session, base, name=name or await _first_model(session, base), sampling=sampling)


def api_base(url: str) -> str:
    """`localhost:8000`, `http://localhost:8000/` and `http://localhost:8000/v1` -> `http://localhost:8000/v1`."""
    base = (url if "://" in url else f"http://{url}").rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


async def _first_model(session: aiohttp.ClientSession, base: str) -> str:
    timeout = aiohttp.ClientTimeout(total=LIST_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
    async with _request(session, "GET", f"{base}/models", timeout=timeout) as response:
        try:
            return str(json.loads(await response.read())["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise RemoteError(f"{base}/models lists no model: is this a server with OpenAI's API? Name a model after --url") from error


@asynccontextmanager
async def _request(session: aiohttp.ClientSession, method: str, url: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    """An answer with status 200. Raises `RemoteError` for another one, and for a connection that fails here or within."""
    try:
        async with session.request(method, url, **options) as response:
            if response.status != 200:
                raise RemoteError(f"{url} answered {response.status}: {_error_text(await response.content.read(2**16))}")
            yield response
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise RemoteError(f"{url} is not a URL: write http://HOST:PORT") from error
    except TimeoutError as error:
        raise RemoteError(f"{url} did not answer in time: is the server's address right?") from error
    except aiohttp.ClientConnectorError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        raise RemoteError(f"{url} cannot be reached ({reason}): is the server running?") from error
    except aiohttp.ClientError as error:
        raise RemoteError(f"the connection to {url} broke off: try again") from error


def _error_text(body: bytes) -> str:
    """The message in OpenAI's form of errors, or the body's beginning."""
    text = body.decode(errors="replace").strip()
    try:
        error = json.loads(text)
        error = error.get("error", error)
        return str(error.get("message", error))[:MAX_ERROR_LEN]
    except (ValueError, AttributeError):
        return text[:MAX_ERROR_LEN] or "no reason given"


async def server_sent_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each event, however the bytes are cut (WHATWG HTML, "Server-sent events")."""
    rest = b""
    lines: list[str] = []
    async for chunk in chunks:
        *ended, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise RemoteError(f"the server sent more than {MAX_EVENT_BYTES} bytes without an end of line: it does not stream events")
        for line in ended:
            field, _, value = line.decode(errors="replace").removesuffix("\r").partition(":")
            if field == "data":
                lines.append(value.removeprefix(" "))
            elif not field and not value and lines:
                yield "\n".join(lines)
                lines = []


def _delta(data: str) -> Delta:
    """One chunk of a streamed chat completion. Raises `RemoteError` for an error in the stream's middle."""
    try:
        chunk = json.loads(data)
        if chunk.get("error"):
            raise RemoteError(f"the server failed: {_error_text(data.encode())}")
        choice = (chunk.get("choices") or [{}])[0]
        text = (choice.get("delta") or {}).get("content") or ""
        num_tokens = (chunk.get("usage") or {}).get("completion_tokens")
        return Delta(text, num_tokens, choice.get("finish_reason"))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise RemoteError(f"the server's stream cannot be read: {data[:MAX_ERROR_LEN]}") from error
