"""The far end of a request: the events that its reader has not taken yet.

A stream never slows the house down: events wait here until the reader comes, and a slow reader gets them
merged in one list. Their number is bounded by the context. Knows no actors.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from actorllm.errors import ActorLLMError
from actorllm.messages import Failure, FinishReason, PromptEvent, TokenEvent, TokenEvents


class RequestStream:
    """All choices of one request: `async for events in stream` gives lists of `TokenEvent`.

    Each choice ends with exactly one event that has a `finish`; iteration stops after the last choice's. Leaving
    `async with stream` early, or `abort()`, ends the request wherever it is.
    """

    def __init__(self, request_id: str, num_choices: int, *, on_abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self.prompt_ids: list[int] = []
        self.prompt_event: PromptEvent | None = None
        self.finish_reasons: dict[int, FinishReason] = {}
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self._next_index = [0] * num_choices
        self._events: list[TokenEvent] = []
        self._reader: asyncio.Future[None] | None = None
        self._take: Callable[[TokenEvent], bool] | None = None
        self._on_abort = on_abort
        self._is_aborted = False

    @property
    def num_choices(self) -> int:
        return len(self._next_index)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def is_finished(self) -> bool:
        """Whether every choice has had its last event (which may still wait to be read)."""
        return len(self.finish_reasons) == len(self._next_index)

    def ends(self) -> list[FinishReason]:
        """How each choice ended, when nobody reads on: one without a last event was aborted."""
        return [self.finish_reasons.get(choice, "abort") for choice in range(self.num_choices)]

    def abort(self) -> None:
        """End the request if it has not ended; the remaining choices finish with "abort". Idempotent."""
        if not self.is_finished and not self._is_aborted:
            self._is_aborted = True
            self._on_abort(self.request_id)

    def push(self, event: TokenEvent) -> None:
        """Append an event, unless it was delivered before (a restarted detokenizer repeats itself)."""
        if event.choice in self.finish_reasons or event.index < self._next_index[event.choice]:
            return
        self._next_index[event.choice] = event.index + 1
        self.num_output_tokens += event.token_id >= 0
        if event.finish is not None:
            self.finish_reasons[event.choice] = event.finish
        if not self._is_taken(event):
            self._take = None  # those that follow wait behind it
            self._events.append(event)
        if self._take is None or self.is_finished:
            self._wake()

    def fail(self, error: ActorLLMError) -> None:
        """Finish every open choice with "error"."""
        for choice, index in enumerate(self._next_index):
            self.push(TokenEvent(self.request_id, choice, index, -1, "", finish="error", failure=Failure.of(error)))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[TokenEvent]:
        while not self._events:
            if self.is_finished:
                raise StopAsyncIteration
            await self._woken()
        events, self._events = self._events, []
        return events

    async def forward(self, take: Callable[[TokenEvent], bool]) -> None:
        """Give each event to `take` in the call that delivers it: no task is woken for it, which costs more than writing it.

        Returns when the last choice has ended, or when `take` gives False, because it cannot have more now: that event and
        those after it wait to be read. Raises what `take` raises.
        """
        if self._events or self.is_finished:
            return
        self._take = take
        try:
            await self._woken()
        finally:
            self._take = None

    def _is_taken(self, event: TokenEvent) -> bool:
        try:
            return self._take is not None and self._take(event)
        except Exception as error:  # boundary: a reader's fault must not reach whoever delivers
            if self._reader is not None and not self._reader.done():
                self._reader.set_exception(error)
            return False

    async def _woken(self) -> None:
        if self._reader is not None and not self._reader.done():
            raise RuntimeError("a stream has one reader at a time")
        self._reader = asyncio.get_running_loop().create_future()
        await self._reader

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class Streams:
    """Every request that has not ended, by id; the one place that counts how requests end."""

    def __init__(self) -> None:
        self._open: dict[str, RequestStream] = {}
        self._emptied = asyncio.Event()
        self._emptied.set()
        self.num_ended: dict[FinishReason, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def add(self, stream: RequestStream) -> None:
        """Register a stream; its id must be free."""
        self._open[stream.request_id] = stream
        self._emptied.clear()

    def drop(self, request_id: str, reason: FinishReason) -> None:
        """Forget a request that never got to run, counted as `reason`. Unknown ids are ignored."""
        if request_id in self._open:
            self._end(request_id, reason)

    def deliver(self, message: TokenEvents) -> None:
        """Hand events to their streams; events of requests that ended are dropped."""
        for prompt in message.prompts:
            if stream := self._open.get(prompt.request_id):
                stream.prompt_event = prompt
        for request_id, num_cached in message.cached:
            if stream := self._open.get(request_id):
                stream.num_cached_tokens = num_cached
        for event in message.events:
            stream = self._open.get(event.request_id)
            if stream is None:
                continue
            stream.push(event)
            if stream.is_finished:
                self._end(event.request_id, stream.finish_reasons[0])

    def fail_all(self, error: ActorLLMError) -> None:
        """End every request with `error`."""
        for request_id, stream in list(self._open.items()):
            stream.fail(error)
            self._end(request_id, "error")

    async def wait_empty(self) -> None:
        """Return when no request is open."""
        await self._emptied.wait()

    def _end(self, request_id: str, reason: FinishReason) -> None:
        del self._open[request_id]
        self.num_ended[reason] += 1
        if not self._open:
            self._emptied.set()
