"""An engine that does what a test says: admission waits, events come when the test pushes them, aborts are recorded."""

import asyncio
from typing import Any

from actorllm.errors import ActorLLMError
from actorllm.messages import Failure, SamplingParams, TokenEvent
from actorllm.model_info import EngineStatistics, ModelInfo
from actorllm.scheduling.request import FinishedRequest
from actorllm.stream import RequestStream


class FakeEngine:
    """The face of `Engine` that the server uses."""

    def __init__(self) -> None:
        self.info = ModelInfo(
            names=("fake", "alias"),
            architecture="FakeForCausalLM",
            dtype="float32",
            device="cpu",
            context_len=64,
            vocab_size=16,
            num_weight_bytes=0,
            num_slots=(64,),
            created=1,
        )
        self.default_params = SamplingParams(temperature=0.7, top_k=5)
        self.is_healthy = True
        self.finished_listeners: list[Any] = []
        self.admits = asyncio.Event()
        self.admits.set()
        self.refusal: Exception | None = None
        self.submitted: list[tuple[Any, SamplingParams, float | None]] = []
        self.aborted: list[str] = []
        self.streams: list[RequestStream] = []

    async def submit(
        self,
        prompt: Any,
        params: SamplingParams,
        *,
        request_id: str,
        wait_timeout: float | None = None,
        timeout: float | None = None,
        namespace: str = "",
    ) -> RequestStream:
        self.submitted.append((prompt, params, timeout))
        if self.refusal is not None:
            raise self.refusal
        try:
            await self.admits.wait()
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise
        stream = RequestStream(request_id, params.n, on_abort=self._abort)
        stream.prompt_ids = [1, 2, 3]
        self.streams.append(stream)
        return stream

    def push(self, text: Any, *, stream: int = 0, choice: int = 0, finish: Any = None) -> None:
        """Give a stream one more token."""
        to = self.streams[stream]
        to.push(TokenEvent(to.request_id, choice, to._next_index[choice], 1, text, finish=finish))
        if to.is_finished:
            self._tell_finished(to.request_id, to.finish_reasons[0])

    def fail(self, error: ActorLLMError, *, stream: int = 0, choice: int = 0) -> None:
        """End a choice with an error."""
        to = self.streams[stream]
        index = to._next_index[choice]
        to.push(TokenEvent(to.request_id, choice, index, -1, "", finish="error", failure=Failure.of(error)))
        if to.is_finished:
            self._tell_finished(to.request_id, to.finish_reasons[0])

    def _abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self._tell_finished(request_id, "abort")

    def _tell_finished(self, request_id: str, finish: Any) -> None:
        record = FinishedRequest(request_id=request_id, prompt_len=3, output_len=1, arrived=0.0, scheduled=0.0, finish=finish)
        for listener in self.finished_listeners:
            listener(record)

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            num_open=0,
            num_ended={},
            num_running=0,
            num_waiting=0,
            num_pauses=0,
            slots_in_use=(0,),
            num_slots=(64,),
            num_steps=0,
            num_restarts=0,
        )
