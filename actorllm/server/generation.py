"""One HTTP request's way through the engine: prompts are submitted, events come back with their choice's number.

Leaving the `async with` aborts whatever still runs, so a client that disconnects frees its slots. Knows no body format.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Any, Self

from actorllm.engine import Engine, PromptLike
from actorllm.messages import SamplingParams, TokenEvent
from actorllm.server.metrics import Metrics
from actorllm.stream import RequestStream

Batch = list[tuple[int, TokenEvent]]
"""Events with their choice's number."""


class Generation:
    """The streams of one HTTP request: choice `c` of prompt `p` has number `p * n + c`."""

    def __init__(self, engine: Engine, metrics: Metrics, request_id: str) -> None:
        self.request_id = request_id
        self.streams: list[RequestStream] = []
        self.first_token_seconds: float | None = None
        self.text_lens: Counter[int] = Counter()
        """Characters that each choice has streamed so far."""
        self._engine = engine
        self._metrics = metrics
        self._began = time.monotonic()
        self._last_token: float | None = None
        self._leaving = AsyncExitStack()
        self._is_left = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_left = kind is not None and issubclass(kind, asyncio.CancelledError)
        await self._leaving.aclose()
        self._metrics.ended(self.streams, time.monotonic() - self._began)

    async def submit(
        self, prompts: Sequence[PromptLike], params: SamplingParams, *, timeout: float | None = None, namespace: str = ""
    ) -> None:
        """Admit every prompt. Raises what `Engine.submit` raises; nothing streams then.

        The engine's ids end in something random: clients may send one X-Request-Id twice.
        """
        for prompt in prompts:
            request_id = f"{self.request_id}-{secrets.token_hex(4)}"
            stream = await self._engine.submit(prompt, params, request_id=request_id, timeout=timeout, namespace=namespace)
            self.streams.append(await self._leaving.enter_async_context(stream))

    async def events(self) -> AsyncGenerator[Batch, None]:
        """Batches as they come; raises nothing for failures, they are in the events."""
        if len(self.streams) == 1:
            async for events in self.streams[0]:
                self._measure(len(events))
                yield [(event.choice, event) for event in events]
            return
        async with aclosing(_merged(self.streams)) as merged:
            async for number, events in merged:
                self._measure(len(events))
                base = number * self.num_choices_per_prompt
                yield [(base + event.choice, event) for event in events]

    async def forward(self, take: Callable[[TokenEvent], bool]) -> None:
        """`RequestStream.forward`, if there is one stream; several are only read by `events`."""

        def measured(event: TokenEvent) -> bool:
            is_taken = take(event)
            if is_taken:
                self._measure(1)
            return is_taken

        if len(self.streams) == 1:
            await self.streams[0].forward(measured)

    def stream_of(self, number: int) -> RequestStream:
        """The stream that a choice belongs to."""
        return self.streams[number // self.num_choices_per_prompt]

    @property
    def num_choices_per_prompt(self) -> int:
        return self.streams[0].num_choices

    @property
    def num_choices(self) -> int:
        return len(self.streams) * self.num_choices_per_prompt

    @property
    def num_prompt_tokens(self) -> int:
        return sum(stream.num_prompt_tokens for stream in self.streams)

    @property
    def num_output_tokens(self) -> int:
        return sum(stream.num_output_tokens for stream in self.streams)

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object, up to now."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_output_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_output_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(stream.num_cached_tokens for stream in self.streams)},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def log_fields(self) -> str:
        """What a log line says of it once it is over."""
        reasons = sorted({reason for stream in self.streams for reason in stream.ends()} | ({"abort"} if self._is_left else set()))
        first = "-" if self.first_token_seconds is None else f"{self.first_token_seconds:.3f}"
        tokens = f"prompt_tokens={self.num_prompt_tokens} output_tokens={self.num_output_tokens}"
        return f"{tokens} ttft={first} finish={','.join(reasons) or '-'}"

    def _measure(self, num_events: int) -> None:
        now = time.monotonic()
        if self._last_token is None:
            self.first_token_seconds = now - self._began
            self._metrics.time_to_first_token.observe(self.first_token_seconds)
        else:
            self._metrics.inter_token_latency.observe(now - self._last_token, num_events)
        self._last_token = now


async def _merged(streams: Sequence[RequestStream]) -> AsyncGenerator[tuple[int, list[TokenEvent]], None]:
    """(stream's number, its next events), whichever stream has some."""
    waiting = {asyncio.ensure_future(anext(stream)): number for number, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                if isinstance(task.exception(), StopAsyncIteration):
                    continue
                waiting[asyncio.ensure_future(anext(streams[number]))] = number
                yield number, task.result()
    finally:
        for task in waiting:
            task.cancel()
