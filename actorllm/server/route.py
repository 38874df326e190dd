"""What the two generating routes share: reading, admission, streaming, usage, errors in the middle of a stream.

A subclass says how its body becomes prompts and how events become its JSON.
"""

import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from aiohttp import web

from actorllm.engine import Engine
from actorllm.errors import InvalidRequest, UnknownModel
from actorllm.messages import Prompt, TextPrompt, TokenEvent
from actorllm.server.api_types import RequestBody, read_body
from actorllm.server.generation import Generation
from actorllm.server.keys import GENERATION, REQUEST_ID
from actorllm.server.metrics import Metrics
from actorllm.server.replies import DONE, error_of, event, json_reply

B = TypeVar("B", bound=RequestBody)
JSON_TYPES = ("application/json", "application/octet-stream")


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
    def opening(self, generation: Generation, body: B) -> list[dict[str, Any]]:
        """Choices of the chunks that come before any token."""

    @abstractmethod
    def delta(self, number: int, event: TokenEvent, body: B) -> dict[str, Any]:
        """The chunk's choice for one event."""

    @abstractmethod
    def whole(self, generation: Generation, number: int, events: list[TokenEvent], body: B) -> dict[str, Any]:
        """The whole choice from all of its events."""

    @staticmethod
    def plain_text(text: str) -> Prompt:
        """Text without the special tokens that the tokenizer would add."""
        return TextPrompt(text, add_special_tokens=False)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; the client's leaving cancels this and so aborts the request."""
        body: B = read_body(await read_json(request), self.body_type)
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
            for number, token in batch:
                if token.failure is not None:
                    raise token.failure.error()
                events[number].append(token)
        choices = [self.whole(generation, number, own, body) for number, own in enumerate(events)]
        return json_reply(
            {**self._frame(generation, self.whole_name), "choices": choices, "usage": generation.usage()},
            headers={"X-Request-Id": generation.request_id.removeprefix(self.id_prefix)},
        )

    async def _stream(self, request: web.Request, generation: Generation, body: B) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Request-Id": request[REQUEST_ID]})
        response.content_type = "text/event-stream"
        await response.prepare(request)
        frame = self._frame(generation, self.chunk_name)
        is_opened = False
        async for batch in generation.events():
            chunks = []
            if not is_opened:  # with the first token, so that the prompt's logprobs are there
                is_opened = True
                chunks += [self._chunk(frame, choice, generation, body) for choice in self.opening(generation, body)]
            for number, token in batch:
                if token.failure is not None:
                    await response.write(b"".join(chunks) + event(error_of(token.failure.error())) + DONE)
                    return response
                chunks.append(self._chunk(frame, self.delta(number, token, body), generation, body))
            await response.write(b"".join(chunks))
        if body.wants_usage:
            await response.write(event({**frame, "choices": [], "usage": generation.usage()}))
        await response.write(DONE)
        await response.write_eof()
        return response

    def _chunk(self, frame: dict[str, Any], choice: dict[str, Any], generation: Generation, body: B) -> bytes:
        chunk = {**frame, "choices": [choice]}
        if body.wants_usage_always:
            chunk["usage"] = generation.usage()
        elif body.wants_usage:
            chunk["usage"] = None
        return event(chunk)

    def _frame(self, generation: Generation, name: str) -> dict[str, Any]:
        """What all chunks of one answer have in common."""
        return {
            "id": generation.request_id,
            "object": name,
            "created": int(time.time()),
            "model": self.engine.info.name,
            "system_fingerprint": None,
        }


async def read_json(request: web.Request) -> bytes:
    """The body of a JSON request; another content type is refused, so that no foreign page can post by a form."""
    if request.content_type not in JSON_TYPES:
        raise WrongContentType("send the body as application/json")
    return await request.read()


class WrongContentType(InvalidRequest):
    """The body is not declared to be JSON."""

    status = 415


