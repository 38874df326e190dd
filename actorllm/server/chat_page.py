"""The chat page at /, and the files that it is made of under /page/: plain HTML, CSS and JavaScript modules, as they lie in `page/`.

The page's policy lets nothing run, load or connect but what this server itself sends, so text of a model that slipped into the
page as markup could do nothing. Knows no chat: the page talks to /v1/chat/ws like any other client.
"""

import hashlib
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""`no-cache` keeps a copy but asks each time whether it is still right, so a page and its server always match."""


class ChatPage:
    """The files, read once."""

    def __init__(self) -> None:
        self._files = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}

    async def index(self, request: web.Request) -> web.Response:
        return self._reply(request, "index.html")

    async def file(self, request: web.Request) -> web.Response:
        """Raises `HTTPNotFound` for a name that is none of the page's files."""
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound
        return self._reply(request, name)

    def _reply(self, request: web.Request, name: str) -> web.Response:
        content = self._files[name]
        tag = hashlib.sha256(content).hexdigest()[:32]
        headers = {**HEADERS, "ETag": f'"{tag}"'}
        if any(known.value in (tag, "*") for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=content, content_type=TYPES[Path(name).suffix], charset="utf-8", headers=headers)
