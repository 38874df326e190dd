"""One answer of a chat: its prompt goes to the engine, text comes back, and one account at the end.

The prompt takes the way of /v1/chat/completions: the checkpoint's template, the engine's admission. Knows no socket.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from msgspec import Struct

from actorllm.engine import Engine
from actorllm.errors import ActorLLMError
from actorllm.messages import FinishReason, TokenEvent
from actorllm.server.chat.frames import internal_trouble, trouble_of
from actorllm.server.chat.messages import Reason, Timings, Trouble, Usage
from actorllm.server.chat.queue_times import QueueTimes, queue_seconds
from actorllm.server.chat.session import StartAnswer
from actorllm.server.generation import Generation
from actorllm.server.metrics import Metrics

logger = logging.getLogger(__name__)
requests_logger = logging.getLogger("actorllm.requests")
T = TypeVar("T")
REASONS: dict[FinishReason, Reason] = {"stop": "stop", "length": "length", "abort": "cancel", "error": "error"}


class AnswerEnd(Struct, frozen=True, kw_only=True):
    """How an answer ended."""

    reason: Reason
    usage: Usage
    timings: Timings
    error: Trouble | None = None


class Answers:
    """Generates answers over one engine."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._queue_times = QueueTimes(engine)

    async def generate(self, order: StartAnswer, *, cancel: asyncio.Event, say: Callable[[str], None]) -> AnswerEnd:
        """Give each piece of text to `say` until the answer ends or `cancel` is set. Raises nothing but cancellation."""
        began = time.monotonic()
        name = f"chat-{uuid.uuid4().hex}"
        reason: Reason = "cancel"
        error: Trouble | None = None
        with self._queue_times.expecting(name) as record:
            async with Generation(self._engine, self._metrics, name) as generation:
                try:
                    reason = await _unless(cancel, self._talk(generation, order, say)) or "cancel"
                except ActorLLMError as raised:
                    reason, error = "error", trouble_of(raised)
                except Exception:  # boundary: one answer
                    logger.exception("answer %s failed", name)
                    reason, error = "error", internal_trouble()
            total = time.monotonic() - began
            waited = await queue_seconds(record) if generation.streams else None
            if waited is None and not generation.num_output_tokens:
                waited = total  # it never ran: all its time was waiting
        details = generation.log_fields() + (f" error={error.code}" if error else "")
        requests_logger.info("%s answer of a chat: reason=%s seconds=%.3f %s", name, reason, total, details)
        return AnswerEnd(reason=reason, usage=_usage(generation), timings=_timings(generation, total, waited), error=error)

    @staticmethod
    async def _talk(generation: Generation, order: StartAnswer, say: Callable[[str], None]) -> Reason:
        await generation.submit([order.prompt], order.params)
        last: TokenEvent | None = None
        async for batch in generation.events():
            if text := "".join(event.text for _, event in batch):
                say(text)
            last = batch[-1][1]
            if last.failure is not None:
                raise last.failure.error()
        assert last is not None and last.finish is not None
        return REASONS[last.finish]


async def _unless(cancel: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None if `cancel` was set first and `work` is over for that reason."""
    working, cancelling = asyncio.ensure_future(work), asyncio.ensure_future(cancel.wait())
    try:
        await asyncio.wait({working, cancelling}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        cancelling.cancel()
        working.cancel()
        await asyncio.wait({working})
    return None if working.cancelled() else working.result()


def _usage(generation: Generation) -> Usage:
    return Usage(prompt_tokens=generation.num_prompt_tokens, completion_tokens=generation.num_output_tokens)


def _timings(generation: Generation, total: float, waited: float | None) -> Timings:
    """Speed is counted from the first token on: what came before is `ttft_seconds`."""
    num_tokens = generation.num_output_tokens
    first = generation.first_token_seconds if num_tokens else None
    decoding = None if first is None else total - first
    return Timings(
        queue_seconds=waited,
        ttft_seconds=first,
        total_seconds=total,
        tokens_per_second=(num_tokens - 1) / decoding if decoding and num_tokens > 1 else None,
    )
