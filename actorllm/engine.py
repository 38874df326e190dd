"""The engine: four actors under supervision, and the streams that requests are read from.

    async with Engine(settings) as engine:
        async for piece in engine.generate("Once upon a time", SamplingParams(max_tokens=32)):
            print(piece.text, end="")

Whoever enters the engine waits for the model to be loaded. An actor that fails more often than its budget, or a lost
device, fails every stream with a typed error; `wait_failed` tells. Knows no HTTP.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Self

from actorllm.errors import ActorLLMError, EngineError, EngineFailed, EngineStopped, InvalidRequest, RequestFailed
from actorllm.house import House
from actorllm.messages import (
    Abort,
    ChatPrompt,
    Generate,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenEvent,
    TokenPrompt,
    pack,
)
from actorllm.model_info import EngineStatistics, ModelInfo
from actorllm.runtime.faults import ContractViolation
from actorllm.runtime.observer import Observer
from actorllm.runtime.ref import ActorCrashed, ActorStopped
from actorllm.scheduling.request import FinishedRequest
from actorllm.settings import EngineSettings
from actorllm.stream import RequestStream, Streams
from actorllm.tokenizer.load import Tokenizer

PromptLike = Prompt | str | Sequence[int] | Sequence[Mapping]


class Engine:
    """An inference engine over one model; enter it with `async with`. `observer` sees the actors; each of
    `finished_listeners` is told every request's record once its slots are back.

    Raises `ModelError`, `PluginError` or `SettingsError` on entering when the model cannot be served.
    """

    def __init__(
        self,
        settings: EngineSettings | None = None,
        *,
        observer: Observer | None = None,
    ) -> None:
        self._settings = settings or EngineSettings()
        self._streams = Streams()
        self._house = House(
            self._settings,
            deliver=self._streams.deliver,
            on_finished=self._tell_finished,
            observer=observer or Observer(),
        )
        self._running: asyncio.Task[None] | None = None
        self._failure: EngineError | None = None
        self._failed = asyncio.Event()
        self._is_draining = False
        self._submissions: set[asyncio.Task] = set()
        self.finished_listeners: list[Callable[[FinishedRequest], None]] = []

    async def __aenter__(self) -> Self:
        ready = asyncio.Event()
        self._running = asyncio.create_task(self._run(ready), name="actorllm engine")
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait({self._running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._stop()
            raise
        finally:
            waiting.cancel()
        if not ready.is_set():
            await self._stop()
            self._running.result()  # loading failed: raises the reason
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        await self._stop()

    # --- facts ---

    @property
    def info(self) -> ModelInfo:
        """What is served."""
        return self._house.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._house.tokenizer

    @property
    def default_params(self) -> SamplingParams:
        """The sampling defaults of the checkpoint's generation_config.json."""
        return self._house.default_params

    @property
    def is_healthy(self) -> bool:
        """Whether requests are accepted and can be computed."""
        return self._failure is None and not self._is_draining and self._running is not None and not self._running.done()

    def statistics(self) -> EngineStatistics:
        """Gauges and counters of this moment."""
        return self._house.statistics(num_open=len(self._streams), num_ended=dict(self._streams.num_ended))

    # --- requests ---

    async def submit(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        wait_timeout: float | None = None,
        timeout: float | None = None,
        namespace: str = "",
    ) -> RequestStream:
        """Admit a request and return its stream; `timeout`s are seconds, None takes the settings'. What is computed for it may
        serve other requests of its `namespace`.

        Raises a `RequestError` (malformed, too long, queue full) or `EngineError` before anything streams.
        """
        self._check_open()
        params = params or self.default_params
        request_id = request_id or f"req-{uuid.uuid4().hex}"
        if request_id in self._streams:
            raise InvalidRequest(f"a request with id {request_id!r} is running already", param="request_id")
        stream = RequestStream(request_id, params.n, on_abort=self._abort)
        message = self._generate_message(
            request_id, as_prompt(prompt), params=params, timeouts=(wait_timeout, timeout), namespace=namespace
        )
        self._streams.add(stream)
        submission = asyncio.create_task(self._house.admit(message))
        self._submissions.add(submission)
        submission.add_done_callback(self._submissions.discard)
        try:
            accepted = await asyncio.shield(submission)
        except asyncio.CancelledError:
            # The admission may be half way; only when it is over does an abort surely find the request.
            submission.add_done_callback(lambda done: done.cancelled() or (done.exception(), self._abort(request_id)))
            self._streams.drop(request_id, "abort")
            raise
        except (ActorCrashed, ActorStopped) as error:
            self._abort(request_id)
            self._streams.drop(request_id, "error")
            raise self._failure or RequestFailed("an actor failed while it took this request; send it again") from error
        except ContractViolation as error:
            self._streams.drop(request_id, "error")
            raise InvalidRequest("the request cannot be read: every number in it must fit 64 bits") from error
        except ActorLLMError:
            self._abort(request_id)
            self._streams.drop(request_id, "error")
            raise
        stream.prompt_ids = accepted
        return stream

    async def generate(self, prompt: PromptLike, params: SamplingParams | None = None) -> AsyncGenerator[TokenEvent, None]:
        """The events of all choices as they come; leaving the loop aborts. Raises the failure of a choice."""
        async with await self.submit(prompt, params) as stream:
            async for events in stream:
                for event in events:
                    if event.failure is not None:
                        raise event.failure.error()
                    yield event

    async def complete(self, prompt: PromptLike, params: SamplingParams | None = None) -> list[str]:
        """The whole texts of all choices."""
        texts = [""] * (params or self.default_params).n
        async with aclosing(self.generate(prompt, params)) as events:
            async for event in events:
                texts[event.choice] += event.text
        return texts

    async def encode(self, prompt: PromptLike) -> list[int]:
        """The token ids that a prompt becomes; raises what `submit` raises for a prompt that cannot be read."""
        return await self._house.encode(as_prompt(prompt))

    # --- life ---

    async def drain(self, timeout: float) -> bool:
        """Refuse new requests and wait for the running ones; False if some still run after `timeout` seconds."""
        self._is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._streams.wait_empty()
        return len(self._streams) == 0

    def cut(self) -> None:
        """Refuse new requests, and end those that still run with `EngineStopped`."""
        self._is_draining = True
        self._streams.fail_all(EngineStopped("the server is stopping and has ended this request; send it again elsewhere or later"))

    async def wait_failed(self) -> EngineError:
        """Return the error once the engine has failed for good."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self.is_healthy:
            raise EngineStopped("the engine is stopping and takes no new requests")

    def _generate_message(
        self,
        request_id: str,
        prompt: Prompt,
        *,
        params: SamplingParams,
        timeouts: tuple[float | None, float | None],
        namespace: str,
    ) -> Generate:
        now = time.monotonic()
        scheduling = self._settings.scheduling
        wait, run = (
            default if given is None else given
            for given, default in zip(timeouts, (scheduling.wait_timeout, scheduling.run_timeout), strict=True)
        )
        return Generate(
            request_id=request_id,
            prompt=prompt,
            params=params,
            arrived=now,
            wait_deadline=None if wait is None else now + wait,
            run_deadline=None if run is None else now + run,
            namespace=namespace,
        )

    def _tell_finished(self, record: FinishedRequest) -> None:
        for listener in self.finished_listeners:
            listener(record)

    def _abort(self, request_id: str) -> None:
        self._house.tell_schedule(Abort(request_id))

    async def _run(self, ready: asyncio.Event) -> None:
        """The task in which all actors live."""
        try:
            await self._house.run(ready)
        except Exception as error:  # boundary: whatever ends the actors must end every stream
            if not ready.is_set():
                raise
            failure = error if isinstance(error, EngineError) else EngineFailed(f"{type(error).__name__}: {error}")
            self._failure = failure
            self._streams.fail_all(failure)
            self._failed.set()

    async def _stop(self) -> None:
        if self._running is None:
            return
        for submission in list(self._submissions):
            submission.cancel()
        self._house.stop()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({self._running})
            if not self._running.cancelled():
                self._running.exception()  # retrieved: who entered has been told, or has left
        await self._house.close()


def as_prompt(prompt: PromptLike) -> Prompt:
    """Text, token ids or chat messages as the message they travel in."""
    if isinstance(prompt, TextPrompt | TokenPrompt | ChatPrompt):
        return prompt
    if isinstance(prompt, str):
        return TextPrompt(prompt)
    if not prompt or isinstance(prompt[0], int):
        try:
            return TokenPrompt(pack(prompt))  # type: ignore[arg-type]
        except OverflowError as error:
            raise InvalidRequest("a token id does not fit 32 bits", param="prompt") from error
        except TypeError as error:
            raise InvalidRequest("a list of token ids holds whole numbers alone", param="prompt") from error
    if all(isinstance(message, Mapping) for message in prompt):
        return ChatPrompt([dict(message) for message in prompt])  # type: ignore[arg-type]
    raise InvalidRequest("a prompt is text, a list of token ids, or a list of chat messages", param="prompt")
