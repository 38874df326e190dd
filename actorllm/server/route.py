"""What the two generating routes share: reading, admission, streaming, usage, errors in the middle of a stream.

A subclass says how its body becomes prompts and how events become its JSON.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Generic, TypeVar

from aiohttp import HttpVersion11, web

from actorllm.engine import Engine
from actorllm.errors import ActorLLMError, InvalidRequest, UnknownModel
from actorllm.messages import Prompt, PromptEvent, TextPrompt, TokenEvent, TokenLogprob
from actorllm.server.api_types import RequestBody
from actorllm.server.body import read_body
from actorllm.server.direct_body import DirectBody
from actorllm.server.generation import Batch, Generation
from actorllm.server.keys import ERROR, GENERATION, REQUEST_ID
from actorllm.server.metrics import Metrics
from actorllm.server.replies import DONE, error_of, event, internal_error, json_reply

logger = logging.getLogger(__name__)
B = TypeVar("B", bound=RequestBody)


class GenerationRoute(ABC, Generic[B]):
    """A POST handler; call `handle`."""

    body_type: ClassVar[type]
    chunk_name: ClassVar[str]
    whole_name: ClassVar[str]
    id_prefix: ClassVar[str]

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine = engine
        self._metrics = metrics

    @abstractmethod
    async def submit(self, generation: Generation, body: B) -> None:
        """Admit the body's prompts."""

    @abstractmethod
    def opening(self, generation: Generation, number: int, body: B) -> dict[str, Any] | None:
        """The choice of a chunk that comes before the choice's first token, if there is one."""

    @abstractmethod
    def delta(self, generation: Generation, number: int, *, event: TokenEvent, body: B) -> dict[str, Any]:
        """The chunk's choice for one event."""

    @abstractmethod
    def whole(self, generation: Generation, number: int, *, events: list[TokenEvent], body: B) -> dict[str, Any]:
        """The whole choice from all of its events."""

    @staticmethod
    def plain_text(text: str) -> Prompt:
        """Text without the special tokens that the tokenizer would add."""
        return TextPrompt(text, add_special_tokens=False)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; the client's leaving cancels this and so aborts the request."""
        body: B = read_body(await read_json(request), self.body_type, context=self.engine.info.context_len)
        if body.model is not None and body.model not in self.engine.info.names:
            served = ", ".join(self.engine.info.names)
            raise UnknownModel(f"model {body.model!r} is not served here; served: {served}", param="model")
        async with Generation(self.engine, self._metrics, self.id_prefix + request[REQUEST_ID]) as generation:
            request[GENERATION] = generation
            await self.submit(generation, body)
            if body.is_streamed:
                return await self._stream(request, generation, body)
            return await self._complete(generation, body)

    async def _complete(self, generation: Generation, body: B) -> web.Response:
        events: list[list[TokenEvent]] = [[] for _ in range(generation.num_choices)]
        async for batch in generation.events():
            _raise_failure(batch)
            for number, token in batch:
                events[number].append(token)
        choices = [self.whole(generation, number, events=own, body=body) for number, own in enumerate(events)]
        if body.prompt_logprobs is not None:
            for choice in choices:
                scores = generation.stream_of(choice["index"]).prompt_event
                choice["prompt_logprobs"] = prompt_logprobs(scores) if scores else [None]
        return json_reply(
            {**self.frame(generation, self.whole_name), "choices": choices, "usage": generation.usage()},
            headers={"X-Request-Id": generation.request_id.removeprefix(self.id_prefix)},
        )

    async def _stream(self, request: web.Request, generation: Generation, body: B) -> web.StreamResponse:
        async with aclosing(generation.events()) as batches:
            first = await anext(batches)
            _raise_failure(first)  # nothing has been sent yet, so a failure may still be the answer's status
            response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Request-Id": request[REQUEST_ID]})
            response.content_type = "text/event-stream"
            if request.version >= HttpVersion11:
                response.enable_chunked_encoding()
            await response.prepare(request)
            chunks = Chunks(self, generation, body)
            try:
                await response.write(chunks.of(first))
                await _send(chunks, batches, generation=generation, response=response, direct=DirectBody(request, response))
                if body.wants_usage:
                    await response.write(chunks.usage())
            except ActorLLMError as error:
                request[ERROR] = type(error).__name__
                await response.write(event(error_of(error)))
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception:  # boundary: HTTP handler
                request[ERROR] = "internal"
                logger.exception("request %s failed while it was streamed", request[REQUEST_ID])
                await response.write(event(internal_error()))
            await response.write(DONE)
            await response.write_eof()
            return response

    def frame(self, generation: Generation, name: str) -> dict[str, Any]:
        """What all chunks of one answer have in common."""
        return {
            "id": generation.request_id,
            "object": name,
            "created": int(time.time()),
            "model": self.engine.info.name,
            "system_fingerprint": None,
        }


class Chunks(Generic[B]):
    """Events as server-sent events of one streamed answer."""

    def __init__(self, route: GenerationRoute[B], generation: Generation, body: B) -> None:
        self._route = route
        self._generation = generation
        self._body = body
        self._frame = route.frame(generation, route.chunk_name)
        self._unopened = set(range(generation.num_choices))

    def of(self, batch: Batch) -> bytes:
        """One chunk an event, up to a failure; before a choice's first its opening: the prompt's logprobs have come by then."""
        chunks = []
        for number, token in batch:
            if token.failure is not None:
                break
            if number in self._unopened:
                self._unopened.remove(number)
                opening = self._route.opening(self._generation, number, self._body)
                chunks += [] if opening is None else [self._chunk(opening)]
            chunks.append(self._chunk(self._route.delta(self._generation, number, event=token, body=self._body)))
        return b"".join(chunks)

    def usage(self) -> bytes:
        """The chunk after the last one: no choice, and what was used."""
        return event({**self._frame, "choices": [], "usage": self._generation.usage()})

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        chunk = {**self._frame, "choices": [choice]}
        if self._body.wants_usage_always:
            chunk["usage"] = self._generation.usage()
        elif self._body.wants_usage:
            chunk["usage"] = None
        return event(chunk)


async def _send(
    chunks: Chunks[B],
    batches: AsyncIterator[Batch],
    *,
    generation: Generation,
    response: web.StreamResponse,
    direct: DirectBody,
) -> None:
    """Write all there is: at once while the client keeps up, else as it reads. Raises the failure of a choice."""

    def take(token: TokenEvent) -> bool:
        if token.failure is not None or not direct.has_room:
            return False
        direct.write(chunks.of([(token.choice, token)]))
        return True

    await generation.forward(take)
    async for batch in batches:
        if data := chunks.of(batch):
            await response.write(data)
        _raise_failure(batch)
        await generation.forward(take)


def named_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, float]:
    """Token text -> logprob; the first of equal texts stays."""
    named: dict[str, float] = {}
    for entry in entries:
        named.setdefault(entry.text, entry.logprob)
    return named


def prompt_logprobs(event: PromptEvent) -> list[dict[str, float] | None]:
    """For each token of the prompt its own logprob and the best ones; None for the first."""
    return [None if entry is None else named_logprobs([entry[0], *entry[1]]) for entry in event.logprobs]


def _raise_failure(batch: Batch) -> None:
    for _, token in batch:
        if token.failure is not None:
            raise token.failure.error()


async def read_json(request: web.Request) -> bytes:
    """The body of a JSON request; another content type is refused, so that no foreign page can post by a form."""
    if request.content_type != "application/json":
        raise WrongContentType("send the body with the header Content-Type: application/json")
    limit = request.client_max_size
    if request.content_length is not None and request.content_length > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=request.content_length)
    return await request.read()


class WrongContentType(InvalidRequest):
    """The body is not declared to be JSON."""

    status = 415


