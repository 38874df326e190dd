"""`actorllm serve [MODEL]`: an engine and its HTTP server until a signal or a failure.

The first SIGINT or SIGTERM drains: no new requests, running ones finish. A second one stops at once. Exit codes: 0 after
a stop that was asked for, 1 if the engine failed, 2 for a wrong flag, setting or model.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from actorllm.cli import event_loop
from actorllm.cli.engine_flags import add_engine_flags, read_settings
from actorllm.cli.sizes import byte_count
from actorllm.errors import SettingsError
from actorllm.models.hub import check_place
from actorllm.settings import Settings

if TYPE_CHECKING:
    from actorllm.engine import Engine

SWITCH_INTERVAL = 5e-5
"""Seconds a thread may keep the GIL while another waits. With Python's default of 5 ms the device thread, which takes the
GIL anew for every operator, would be starved by a busy event loop."""

STOP_TIMEOUT = 10.0
"""Seconds that the engine may take to end."""

ENGINE_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, what all commands with a model share, and the server's own flags."""
    parser.add_argument(
        "path", nargs="?", metavar="MODEL", help="a Hugging Face model folder, or ORG/NAME on the hub (default: the demo model)"
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default 8000)")
    parser.add_argument("--max-waiting", type=int, help="requests that may wait before others are refused")
    parser.add_argument("--max-body", type=byte_count, metavar="BYTES", help="longest body of a request (default 4MiB)")
    parser.add_argument(
        "--allow-origin",
        dest="allowed_origins",
        action="append",
        metavar="ORIGIN",
        help="another site whose pages may chat, or this server's own address behind a proxy: https://chat.example.org",
    )
    parser.add_argument(
        "--served-model-name", dest="served_names", nargs="+", metavar="NAME", help="names that clients may ask for"
    )
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped; returns the exit code."""
    settings = read_settings(arguments)
    if settings.model.path is None and arguments.served_names and len(arguments.served_names) > 1:
        last = arguments.served_names[-1]
        raise SettingsError(f"--served-model-name took {last!r} as one more name: put the model before the flags")
    check_place(settings.model.path, revision=settings.model.revision)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the hub's client logs every request,
    logging.getLogger("huggingface_hub").propagate = False  # and the hub's library prints what it logs itself
    sys.setswitchinterval(SWITCH_INTERVAL)
    return event_loop.run(serve(settings))


async def serve(settings: Settings) -> int:
    """Enter the engine, listen, and wait for a reason to stop."""
    stops = _Stops()
    await _check_address(settings)
    from actorllm.engine import Engine  # torch takes its seconds once nothing else is wrong

    if settings.model.path is None:
        _say("no model was named: serving the demo model, a tiny one that knows ActorLLM and little else (give a model's folder or ORG/NAME)")
    engine = Engine(settings.engine())
    loading = asyncio.ensure_future(engine.__aenter__())
    await stops.race(loading)
    if not loading.done():
        _say("stopping while the model is loaded")
        loading.cancel()
        await _end(asyncio.wait({loading}), stops, code=0)
        _leave(0)  # what still reads or downloads cannot be interrupted
    loading.result()
    code = ENGINE_FAILED
    try:
        code = await _serve_loaded(engine, settings, stops)
    finally:
        await _end(engine.__aexit__(None, None, None), stops, code=code)
    if code == ENGINE_FAILED:
        _leave(code)  # a device thread may be stuck
    return code


async def _serve_loaded(engine: "Engine", settings: Settings, stops: "_Stops") -> int:
    """Listen until a signal has been obeyed or the engine has failed; returns the exit code."""
    runner, address = await _listen(engine, settings)
    try:
        info = engine.info
        _say(
            f"serving {info.name} ({info.architecture}, {info.dtype} on {info.device}, context {info.context_len}, "
            f"{sum(info.num_slots)} token slots) at {address}"
        )
        _say(f"to chat, open {address}/ in a browser")
        failure = asyncio.ensure_future(engine.wait_failed())
        await stops.race(failure)
        if not failure.done():
            _say("stopping: running requests may finish; a second signal stops at once")
            draining = asyncio.ensure_future(engine.drain(settings.server.drain_timeout))
            await stops.race(draining, failure)
            draining.cancel()
            engine.cut()  # whoever still runs is told so, while there is a connection to say it on
        if failure.done():
            _say(f"error: {failure.result().message}")
            return ENGINE_FAILED
        failure.cancel()
        return 0
    finally:
        await runner.cleanup()  # answers in flight, errors too, get a moment to be written


async def _check_address(settings: Settings) -> None:
    """Raise `SettingsError` for an address that is taken, before a large model is loaded for nothing."""
    with _address_errors(settings):
        loop, server = asyncio.get_running_loop(), settings.server
        (await loop.create_server(asyncio.Protocol, server.host, server.port, start_serving=False)).close()


async def _listen(engine: "Engine", settings: Settings) -> tuple[Any, str]:
    from actorllm.server.app import create_app, start_site

    with _address_errors(settings):
        return await start_site(create_app(engine, settings.server), settings.server)


@contextmanager
def _address_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"cannot listen on {settings.server.host} port {settings.server.port}: {reason}; "
            "choose another --port or --host"
        ) from error


async def _end(closing: Coroutine[Any, Any, Any], stops: "_Stops", *, code: int) -> None:
    """Wait for the end of what ends soon, or else leave for good: a stuck thread cannot be joined, and whoever sends one
    more signal means it."""
    task = asyncio.ensure_future(closing)
    await stops.race(task, timeout=STOP_TIMEOUT)
    if not task.done():
        _leave(code)
    task.result()


def _leave(code: int) -> NoReturn:
    """End the process without waiting for any thread."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _say(text: str) -> None:
    print(f"actorllm: {text}", file=sys.stderr, flush=True)


class _Stops:
    """SIGINT and SIGTERM, counted one by one."""

    def __init__(self) -> None:
        self._arrivals: asyncio.Queue[None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._arrivals.put_nowait, None)

    async def race(self, *others: "asyncio.Future[Any]", timeout: float | None = None) -> None:
        """Return at the next signal, when one of `others` is done, or after `timeout` seconds."""
        arrival = asyncio.ensure_future(self._arrivals.get())
        await asyncio.wait({arrival, *others}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        arrival.cancel()
