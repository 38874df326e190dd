"""A small hub on loopback: models in memory, the routes that `huggingface_hub` asks, and faults on order."""

import asyncio
import hashlib
import threading
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Repository:
    """A model: commits by hash, and names of commits. A gated one tells its files' names but gives none away."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    is_gated: bool = False

    @classmethod
    def of(cls, files: dict[str, bytes], **changes: bool) -> "Repository":
        """One commit on the main branch."""
        commit = hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()
        return cls({commit: files}, {"main": commit}, **changes)


@dataclass
class HubServer:
    """Serves `models` at `address` while it is entered. `requests` is what was asked: (method, file or API path, Range).

    The first GET of a file in `drops` gets half of it and then a closed connection. A file in `stalls` never comes.
    """

    models: dict[str, Repository] = field(default_factory=dict)
    drops: set[str] = field(default_factory=set)
    stalls: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""

    def __enter__(self) -> "HubServer":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def files_sent(self) -> list[str]:
        """The files that were asked for by GET."""
        return [path for method, path, _ in self.requests if method == "GET" and not path.startswith("/api/")]

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/api/models/{org}/{name}", self._model)
        app.router.add_get("/api/models/{org}/{name}/revision/{revision}", self._model)
        app.router.add_get("/api/models/{org}/{name}/tree/{revision}", self._tree)
        app.router.add_get("/{org}/{name}/resolve/{revision}/{path:.+}", self._file)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"http://{host}:{port}"

    async def _end(self) -> None:
        await self._runner.cleanup()
        stalled = asyncio.all_tasks() - {asyncio.current_task()}
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)

    def _find(self, request: web.Request) -> tuple[Repository, str]:
        """The model and the commit that a request names."""
        info = request.match_info
        path = info.get("path") or request.path
        self.requests.append((request.method, path, request.headers.get("Range")))
        model = self.models.get(f"{info['org']}/{info['name']}")
        if model is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        if request.headers.get("Authorization") == "Bearer wrong":
            raise web.HTTPUnauthorized(headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        revision = info.get("revision", "main")
        commit = model.refs.get(revision, revision)
        if commit not in model.commits:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RevisionNotFound"})
        return model, commit

    async def _model(self, request: web.Request) -> web.Response:
        model, commit = self._find(request)
        info = request.match_info
        siblings = [{"rfilename": name} for name in model.commits[commit]]
        return web.json_response({"id": f"{info['org']}/{info['name']}", "sha": commit, "siblings": siblings})

    async def _tree(self, request: web.Request) -> web.Response:
        model, commit = self._find(request)
        files = model.commits[commit].items()
        return web.json_response(
            [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for name, data in files]
        )

    async def _file(self, request: web.Request) -> web.StreamResponse:
        model, commit = self._find(request)
        path = request.match_info["path"]
        if model.is_gated:
            raise web.HTTPForbidden(headers={"X-Error-Code": "GatedRepo"})
        if path not in model.commits[commit]:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        data = model.commits[commit][path]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start, stop = request.http_range.start or 0, min(request.http_range.stop or len(data), len(data))
        if is_part := "Range" in request.headers:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        data = data[start:stop]
        response = web.StreamResponse(status=206 if is_part else 200, headers=headers)
        response.content_length = len(data)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        if path in self.stalls:
            await asyncio.sleep(600)
        if path in self.drops:
            self.drops.discard(path)
            await response.write(data[: len(data) // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(data)
        return response
