"""Supervision: an `async with` block in which actors live, are restarted, and beyond which nothing lasts.

Start consumers before producers: on leaving the block mailboxes close and drain in reverse order, so the pipeline
empties from its front door. When an actor may not be restarted any more, `ActorFailed` leaves the block (bare, not in
an exception group) after the task inside has been cancelled. After Erlang/OTP's supervisors.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

from actorllm.runtime.actor import Actor, Incarnation, refuse_rest
from actorllm.runtime.codec import Codec, EncodedCodec, PlainCodec
from actorllm.runtime.mailbox import Mailbox
from actorllm.runtime.observer import Observer
from actorllm.runtime.ref import ActorStopped, Ref

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]


class ActorFailed(Exception):
    """Actor `name` will not be restarted: its last `error` is fatal or its budget is spent."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(f"actor {name} failed for good: {type(error).__name__}: {error}")
        self.name = name
        self.error = error


class _Child:
    """One supervised actor: what outlives its incarnations, and the task of the present one."""

    def __init__(self, name: str, factory: Callable[[], Actor], mailbox: Mailbox) -> None:
        self.name = name
        self.factory = factory
        self.mailbox = mailbox
        self.num_incarnations = 0
        self.actor: Actor
        self.codec: Codec
        self.ref: Ref
        self.task: asyncio.Task[None] | None = None
        self.drained = asyncio.Event()


class Supervisor:
    """Restarts at most `restarts` times within `window` seconds; errors of `fatal` types are never restarted."""

    def __init__(
        self,
        name: str,
        *,
        strategy: Strategy = "one_for_one",
        restarts: int = 5,
        window: float = 60.0,
        fatal: tuple[type[BaseException], ...] = (),
        encode: bool = True,
        observer: Observer | None = None,
    ) -> None:
        self.name = name
        self._strategy = strategy
        self._restarts = restarts
        self._window = window
        self._fatal = fatal
        self._codec_class = EncodedCodec if encode else PlainCodec
        self._observer = observer or Observer()
        self._children: list[_Child] = []
        self._crashes: asyncio.Queue[tuple[_Child, BaseException]] = asyncio.Queue()
        self._restart_times: deque[float] = deque()
        self._tasks = asyncio.TaskGroup()
        self._monitor: asyncio.Task[None]

    @property
    def num_restarts(self) -> int:
        """Restarts so far, all children together."""
        return sum(child.num_incarnations - 1 for child in self._children)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._monitor = self._tasks.create_task(self._watch(), name=f"{self.name} supervisor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                try:
                    await self._drain()
                except BaseException as failure:
                    kind, error, trace = type(failure), failure, failure.__traceback__
            self._monitor.cancel()
            for child in self._children:
                if child.task is not None:
                    child.task.cancel()
            await self._tasks.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if (failed := _find(group, ActorFailed)) is not None:
                raise failed from failed.error
            raise
        finally:
            for child in self._children:
                refuse_rest(child.mailbox, ActorStopped(child.name))

    async def start(self, name: str, factory: Callable[[], Actor], *, capacity: int) -> Ref[Any]:
        """Start an actor and wait until it has `started`; raises what its first `started` raised."""
        child = _Child(name, factory, Mailbox(capacity))
        child.actor = factory()
        child.codec = self._codec_class(type(child.actor))
        child.ref = Ref(name, child.mailbox, child.codec, urgent=type(child.actor).urgent)
        await self._begin(child)
        self._children.append(child)
        self._run(child)
        return child.ref

    async def _drain(self) -> None:
        """Close and empty the mailboxes, the last started first."""
        for child in reversed(self._children):
            child.mailbox.close()
            await child.drained.wait()

    async def _begin(self, child: _Child) -> None:
        child.num_incarnations += 1
        child.actor.ref = child.ref
        child.actor.incarnation = child.num_incarnations
        await child.actor.started()

    def _run(self, child: _Child) -> None:
        child.task = self._tasks.create_task(self._live(child), name=f"actor {child.name}")

    async def _live(self, child: _Child) -> None:
        """One incarnation's life: every end is observed and told to `stopped`; crashes go to the monitor."""
        actor, error = child.actor, None
        try:
            await Incarnation(actor, child.mailbox, child.codec, self._observer).run()
        except asyncio.CancelledError as cancelled:
            error = cancelled
            raise
        except Exception as crash:  # boundary: the monitor decides what a crash means
            error = crash
        finally:
            await actor.stopped(error)
            self._observer.stopped(child.name, error)
        if error is None:
            child.drained.set()
        else:
            self._observer.failed(child.name, error)
            self._crashes.put_nowait((child, error))

    async def _watch(self) -> None:
        """Handle crashes one after another."""
        while True:
            child, error = await self._crashes.get()
            while True:
                self._check_budget(child, error)
                try:
                    await self._restart(child, error)
                    break
                except Exception as again:  # boundary: an actor that cannot start has crashed
                    error = again

    def _check_budget(self, child: _Child, error: BaseException) -> None:
        now = time.monotonic()
        while self._restart_times and now - self._restart_times[0] > self._window:
            self._restart_times.popleft()
        if isinstance(error, self._fatal) or len(self._restart_times) >= self._restarts:
            raise ActorFailed(child.name, error)
        self._restart_times.append(now)

    async def _restart(self, crashed: _Child, error: BaseException) -> None:
        """Replace the crashed actor and whoever the strategy joins to it, in their order of starting."""
        affected = self._affected(crashed)
        for child in reversed(affected):
            if child.task is not None and not child.task.done():
                child.task.cancel()
                await asyncio.wait({child.task})
        for child in affected:
            child.actor = child.factory()
            await self._begin(child)
            self._observer.restarted(child.name, error)
        for child in affected:
            self._run(child)

    def _affected(self, crashed: _Child) -> list[_Child]:
        if self._strategy == "one_for_all":
            return list(self._children)
        if self._strategy == "rest_for_one":
            return self._children[self._children.index(crashed) :]
        return [crashed]


def _find(group: BaseExceptionGroup, kind: type[ActorFailed]) -> ActorFailed | None:
    for error in group.exceptions:
        if isinstance(error, kind):
            return error
        if isinstance(error, BaseExceptionGroup) and (found := _find(error, kind)) is not None:
            return found
    return None
