"""Supervision: an `async with` block in which actors live and are restarted, and beyond which nothing of them lasts.

Start consumers before producers. Leaving the block normally closes and drains the mailboxes one after another, the last
started first, so that a pipeline empties from its front door. Leaving it by an exception or a cancellation cancels
the actors. Either way `stopped` has run and every asker has been answered when the block is left.

An actor that is not to be restarted any more ends the block: its body is cancelled, and `RestartsExhausted` leaves it bare
(in no exception group; what the body itself raised meanwhile is noted on it). Any other error of the body leaves
as it is. Supervisors nest as their blocks do. After the supervisors of Erlang/OTP.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self

from actorllm.runtime.actor import Actor
from actorllm.runtime.codec import Contract
from actorllm.runtime.faults import ActorCrashed, ActorStopped, RestartsExhausted
from actorllm.runtime.incarnation import Incarnation
from actorllm.runtime.mailbox import Mailbox
from actorllm.runtime.observer import Observer
from actorllm.runtime.ref import Envelope, Ref

__all__ = ["RestartsExhausted", "Strategy", "Supervisor"]

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]


class _Child:
    """What of one actor outlives its incarnations. `tasks` are its incarnations that have not ended: the present one,
    and earlier ones that still clean up."""

    def __init__(self, ref: Ref, mailbox: Mailbox[Envelope], *, contract: Contract, factory: Callable[[], Actor]) -> None:
        self.ref = ref
        self.name = ref.name
        self.mailbox = mailbox
        self.contract = contract
        self.factory = factory
        self.num_incarnations = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.task: asyncio.Task[None] | None = None
        self.life: Incarnation | None = None
        self.crash_times: deque[float] = deque()
        self.first_start: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()

    def begun(self, error: Exception | None = None) -> None:
        """The first `started` has succeeded or failed; later calls do nothing."""
        if not self.first_start.done():
            self.first_start.set_result(error)


class Supervisor:
    """Each actor may crash `restarts` times within `window` seconds; errors of `fatal` types are never restarted.

    `strategy` says who is restarted with the actor that crashed: nobody, all, or those started after it. Siblings are
    cancelled; what they were handling is answered with `ActorCrashed`; mailboxes keep their content.
    """

    def __init__(
        self,
        name: str,
        *,
        strategy: Strategy = "one_for_one",
        restarts: int = 5,
        window: float = 60.0,
        fatal: tuple[type[Exception], ...] = (),
        encode: bool = True,
        observer: Observer | None = None,
    ) -> None:
        if strategy not in ("one_for_one", "one_for_all", "rest_for_one"):
            raise ValueError(f"no restart strategy is called {strategy!r}")
        self.name = name
        self._strategy = strategy
        self._restarts = restarts
        self._window = window
        self._fatal = fatal
        self._is_encoded = encode
        self._observer = observer or Observer()
        self._children: list[_Child] = []
        self._group = asyncio.TaskGroup()
        self._is_open = False
        self._exhausted: RestartsExhausted | None = None

    @property
    def num_restarts(self) -> int:
        """Restarts so far, all actors together."""
        return sum(max(child.num_incarnations - 1, 0) for child in self._children)

    async def start(self, name: str, factory: Callable[[], Actor], *, capacity: int) -> Ref[Any]:
        """Start an actor and wait until its `started` has returned.

        What the factory or the first `started` raises is raised here, and is not retried: an actor that never ran cannot be
        mended by running it again. From then on it is a crash, and so it is when a later incarnation cannot start.
        `TypeError` if `receive` declares no usable contract.
        """
        if not self._is_open:
            raise RuntimeError(f"supervisor {self.name!r} starts actors inside of its block only")
        if any(child.name == name for child in self._children):
            raise ValueError(f"supervisor {self.name!r} has an actor called {name!r} already")
        first = factory()
        contract = Contract(type(first), encode=self._is_encoded)
        mailbox: Mailbox[Envelope] = Mailbox(capacity)
        ref: Ref[Any] = Ref(name, mailbox, contract=contract, observer=self._observer)
        child = _Child(ref, mailbox, contract=contract, factory=factory)
        self._children.append(child)
        self._launch([child], first)
        try:
            error = await child.first_start
        except asyncio.CancelledError:
            self._discard(child)
            raise
        if error is not None:
            self._discard(child)
            raise error
        return ref

    # --- the block ---

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._is_open = True
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        body_error, self._is_open = error, False
        try:
            if error is None:
                try:
                    await self._drain()
                except asyncio.CancelledError as cancelled:
                    kind, error, trace = type(cancelled), cancelled, cancelled.__traceback__
            self._abandon()
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if self._exhausted is not None:
                if body_error is not None and not isinstance(body_error, asyncio.CancelledError):
                    self._exhausted.add_note(f"meanwhile the block raised {body_error!r}")
                raise self._exhausted from self._exhausted.error
            if list(group.exceptions) != [body_error]:
                raise
            # the group wrapped the body's own error; on return it goes on bare

    async def _drain(self) -> None:
        """Close the mailboxes and let them run empty, the last started first."""
        for child in reversed(self._children.copy()):
            child.mailbox.close()
            await child.ended.wait()

    def _abandon(self, children: Iterable[_Child] | None = None) -> None:
        """Close mailboxes, and answer who waits for what is in them."""
        for child in self._children if children is None else children:
            child.mailbox.close()
            child.begun(ActorStopped(child.name))
            for envelope in child.mailbox.clear():
                error = ActorStopped(child.name)
                if envelope.reply is None or envelope.is_awaited:
                    self._observer.failed(child.name, error)
                envelope.fail(error)

    def _discard(self, child: _Child) -> None:
        """Forget an actor that could not start."""
        child.ended.set()
        self._children.remove(child)
        self._abandon([child])
        for task in child.tasks:
            task.cancel()

    # --- lives ---

    def _launch(self, children: list[_Child], first: Actor | None = None) -> None:
        """Give each of `children` a new incarnation: when all their earlier ones have ended, and one after another."""
        earlier = {task for child in children for task in child.tasks}
        before: asyncio.Event | None = None
        for child in children:
            ready = asyncio.Event()
            child.life = None
            child.task = self._group.create_task(
                self._live(child, first, earlier=earlier, before=before, ready=ready), name=f"actor {child.name}"
            )
            child.tasks.add(child.task)
            child.task.add_done_callback(child.tasks.discard)
            before = ready

    async def _live(
        self,
        child: _Child,
        actor: Actor | None,
        *,
        earlier: set[asyncio.Task[None]],
        before: asyncio.Event | None,
        ready: asyncio.Event,
    ) -> None:
        """One incarnation, from waiting for its turn to what its end means."""
        if earlier:
            await asyncio.wait(earlier)
        if before is not None:
            await before.wait()

        def on_started() -> None:
            child.begun()
            ready.set()

        child.num_incarnations += 1
        try:
            actor = actor or self._create(child)
            actor.ref, actor.incarnation = child.ref, child.num_incarnations
            child.life = Incarnation(actor, child.mailbox, contract=child.contract, observer=self._observer)
            await child.life.run(on_started)
        except Exception as error:  # boundary: the actor loop ends here
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                self._crashed(child, error)
        else:
            child.ended.set()

    def _create(self, child: _Child) -> Actor:
        try:
            return child.factory()
        except Exception as error:  # boundary: a factory that raises is a crash
            self._observer.failed(child.name, error)
            raise

    # --- crashes ---

    def _crashed(self, child: _Child, error: Exception) -> None:
        """Decide, at once and without awaiting: so no two crashes can be half way through this at the same time."""
        if not child.first_start.done():
            child.begun(error)
            child.ended.set()
            return
        now = monotonic()
        child.crash_times.append(now)
        while child.crash_times[0] < now - self._window:
            child.crash_times.popleft()
        if isinstance(error, self._fatal) or len(child.crash_times) > self._restarts:
            self._exhausted = RestartsExhausted(child.name, self.name, error)
            self._abandon()
            raise self._exhausted
        affected = self._affected(child)
        for sibling in affected:
            reason = error if sibling is child else ActorCrashed(child.name, error)
            self._observer.restarted(sibling.name, reason)
            if sibling is not child and sibling.task is not None:
                if sibling.life is not None:
                    sibling.life.reason = sibling.life.reason or reason
                sibling.task.cancel()
        self._launch(affected)

    def _affected(self, crashed: _Child) -> list[_Child]:
        """Who restarts, in the order of starting; who has drained already has nothing left to do."""
        first = {"one_for_one": None, "one_for_all": 0, "rest_for_one": self._children.index(crashed)}[self._strategy]
        if first is None:
            return [crashed]
        return [child for child in self._children[first:] if not child.ended.is_set()]
