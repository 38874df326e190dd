"""What handlers and middlewares keep on a request."""

from aiohttp import web

from actorllm.server.generation import Generation

REQUEST_ID: web.RequestKey[str] = web.RequestKey("id", str)
ERROR: web.RequestKey[str] = web.RequestKey("error", str)
GENERATION: web.RequestKey[Generation] = web.RequestKey("generation", Generation)
UPGRADED: web.RequestKey[bool] = web.RequestKey("upgraded", bool)
"""Set once the request has become a WebSocket."""
