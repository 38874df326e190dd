"""JSON answers and server-sent events, and how errors look in both. Knows no route."""

import logging
import re
from typing import Any

import msgspec
from aiohttp import web

from actorllm.errors import ActorLLMError

logger = logging.getLogger(__name__)
_encoder = msgspec.json.Encoder()
DONE = b"data: [DONE]\n\n"
RETRY_AFTER_SECONDS = "1"
MAX_MESSAGE_LEN = 1000
INTERNAL_ERROR = "an internal error; the server's log has more"
_TYPES = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error"}
_PRIVATE = re.compile(r"0x[0-9a-fA-F]{6,}|(?<![\w/.])/(?!v1/)(?:[\w.+-]+/)+[\w.+-]*")


def encode(value: Any) -> bytes:
    """JSON bytes."""
    return _encoder.encode(value)


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + _encoder.encode(value) + b"\n\n"


def json_reply(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=encode(value), status=status, content_type="application/json", headers=headers)


def shown(message: str) -> str:
    """What of an error's message may leave the server: no addresses and file paths, nothing at a client's full length. Routes of this
    server stay."""
    return _PRIVATE.sub("(hidden)", message[:MAX_MESSAGE_LEN])


def error_body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object. The message goes out as it is: what may name files of the server passes `shown` first."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_of(error: ActorLLMError) -> dict[str, Any]:
    """The error object of one of our errors; its class is the `code`."""
    return error_body(shown(error.message), error.status, param=error.param, code=type(error).__name__)


def internal_error() -> dict[str, Any]:
    """The error object of what is no error of ours; the log says the rest."""
    return error_body(INTERNAL_ERROR, 500)


def error_reply(error: ActorLLMError) -> web.Response:
    headers = {"Retry-After": RETRY_AFTER_SECONDS} if error.status == 429 else None
    return json_reply(error_of(error), status=error.status, headers=headers)
