"""The ledger: every request that has not ended, with the ids, parameters and positions that are the truth.

All device and detokenizer state can be rebuilt from here, so the ledger outlives the scheduler that works on it.
Knows nothing of slots, rows and steps.
"""

import random
from array import array
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from actorllm.messages import (
    Admit,
    Failure,
    FinishReason,
    RowSampling,
    SamplingParams,
    TopLogprobs,
    unpack,
)
from actorllm.scheduling.prefix import PrefixKey

_GRAVITY: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")


class FinishedRequest(Struct, frozen=True, kw_only=True):
    """A request's end, for the log line and the metrics. Times are `time.monotonic()` seconds.

    `output_len` counts the tokens of all choices, `scheduled` is when it first ran (None: never), `finish` the
    gravest reason among its choices.
    """

    request_id: str
    prompt_len: int
    output_len: int
    arrived: float
    scheduled: float | None
    finish: FinishReason


class Sequence:
    """One choice of a request: its output so far, and how much of it detokenize has been given."""

    __slots__ = (
        "choice",
        "failure",
        "finish",
        "is_finish_sent",
        "is_stop_token",
        "logprobs",
        "num_sent",
        "output_ids",
        "request",
    )

    def __init__(self, request: "Request", choice: int) -> None:
        self.request = request
        self.choice = choice
        self.output_ids = array("i")
        self.logprobs: list[TopLogprobs] = []  # of the tokens that are not sent yet
        self.num_sent = 0
        self.finish: FinishReason | None = None
        self.failure: Failure | None = None
        self.is_stop_token = False
        self.is_finish_sent = False

    @property
    def order(self) -> tuple[Any, int]:
        """The place in the policy's order: the first runs first and is paused last."""
        return self.request.rank, self.choice

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return self.request.prompt_len + len(self.output_ids)

    @property
    def has_news(self) -> bool:
        """Whether detokenize has not been given everything."""
        return len(self.output_ids) > self.num_sent or (self.finish is not None and not self.is_finish_sent)

    def token_ids(self, start: int, end: int) -> array:
        """Prompt and output ids of positions `[start, end)`."""
        prompt_ids, prompt_len = self.request.prompt_ids, self.request.prompt_len
        if end <= prompt_len:
            return prompt_ids[start:end]
        if start >= prompt_len:
            return self.output_ids[start - prompt_len : end - prompt_len]
        return prompt_ids[start:] + self.output_ids[: end - prompt_len]

    def end(self, finish: FinishReason, *, failure: Failure | None = None, is_stop_token: bool = False) -> None:
        """Decide the end; tokens sampled later are dropped by whoever reads `finish`."""
        self.finish = finish
        self.failure = failure
        self.is_stop_token = is_stop_token

    def truncate(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` outputs; detokenize has already ended the choice there by itself."""
        del self.output_ids[num_tokens:]
        self.logprobs.clear()
        self.num_sent = len(self.output_ids)
        self.end("stop")
        self.is_finish_sent = True

    def sampling(self) -> RowSampling:
        """What the device must know to sample this choice."""
        request, params = self.request, self.request.params
        return RowSampling(
            temperature=params.temperature,
            top_k=max(params.top_k, 0),
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=params.logit_bias,
            seed=_signed(request.seed + self.choice),
            logprobs=params.logprobs,
            min_tokens=params.min_tokens,
            banned_ids=request.eos_ids + params.stop_token_ids if params.min_tokens > 0 else (),
        )


class Request:
    """One request with its `n` choices.

    `max_tokens` is the client's, or else what the context leaves. `seed` is drawn once when the client gave none, so that
    recomputing gives the same tokens. `is_forked` tells that the choices have left the common prompt. `num_cached` tokens of
    the prompt were shared with a request that ran when this one first entered.
    """

    __slots__ = (
        "arrived",
        "end_ids",
        "eos_ids",
        "has_unsent_scores",
        "is_forked",
        "is_opened_sent",
        "is_scored",
        "key",
        "max_tokens",
        "num_cached",
        "num_unproved",
        "number",
        "params",
        "prompt_ids",
        "prompt_len",
        "rank",
        "request_id",
        "run_deadline",
        "scheduled",
        "score_parts",
        "seed",
        "sequences",
        "wait_deadline",
    )

    def __init__(self, admit: Admit, *, number: int, context: int) -> None:
        params: SamplingParams = admit.params
        self.request_id = admit.request_id
        self.number = number
        self.rank: Any = number
        self.prompt_ids = unpack(admit.prompt_ids)
        self.prompt_len = len(self.prompt_ids)
        self.key = PrefixKey(admit.namespace, admit.key_ids or admit.prompt_ids)
        self.num_cached = 0
        self.num_unproved = 0
        """Tokens that it must sample in steps of its own, because a step that computed it crashed."""
        self.params = params
        room = context - self.prompt_len
        usual_tokens = room if params.usual_tokens is None else min(params.usual_tokens, room)
        self.max_tokens = usual_tokens if params.max_tokens is None else params.max_tokens
        self.seed = random.getrandbits(63) if params.seed is None else params.seed
        self.eos_ids = admit.eos_ids
        self.end_ids = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else admit.eos_ids)
        self.arrived = admit.arrived
        self.wait_deadline = admit.wait_deadline
        self.run_deadline = admit.run_deadline
        self.scheduled: float | None = None
        self.sequences = tuple(Sequence(self, choice) for choice in range(params.n))
        self.is_forked = params.n == 1
        self.is_opened_sent = False
        self.is_scored = params.prompt_logprobs is None
        self.score_parts: list[TopLogprobs] = []  # of the prompt, until they are sent
        self.has_unsent_scores = False

    @property
    def own_len(self) -> int:
        """Slots that a choice may take beyond the prompt: its last token is sampled but never fed back."""
        return max(0, self.max_tokens - 1)

    @property
    def has_nothing_to_compute(self) -> bool:
        """Neither a token nor the prompt's logprobs are wanted."""
        return self.max_tokens <= 0 and self.is_scored

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended."""
        return all(sequence.finish is not None for sequence in self.sequences)

    @property
    def is_sent(self) -> bool:
        """Whether every choice has ended and detokenize has been given all of it."""
        return all(sequence.is_finish_sent for sequence in self.sequences)

    def drop_partial_scores(self) -> None:
        """The prompt is computed from its beginning: what was gathered of its logprobs comes again."""
        if not self.is_scored:
            self.score_parts.clear()

    def add_scores(self, part: TopLogprobs | None, *, is_last: bool) -> None:
        """The logprobs of the prompt's next tokens (None: the chunk has none)."""
        if part is not None:
            self.score_parts.append(part)
        if is_last:
            self.is_scored = self.has_unsent_scores = True

    def unfinished(self) -> list[Sequence]:
        """The choices that live."""
        return [sequence for sequence in self.sequences if sequence.finish is None]

    def entrances(self) -> list[Sequence]:
        """The sequences that must enter the device: choice 0 alone while the choices share the prompt's
        prefill, later every living choice by itself."""
        return self.unfinished() if self.is_forked else self.unfinished()[:1]

    def finished(self) -> FinishedRequest:
        """The record of the end."""
        reasons: list[FinishReason] = [sequence.finish or "error" for sequence in self.sequences]
        return FinishedRequest(
            request_id=self.request_id,
            prompt_len=self.prompt_len,
            output_len=sum(len(sequence.output_ids) for sequence in self.sequences),
            arrived=self.arrived,
            scheduled=self.scheduled,
            finish=max(reasons, key=_GRAVITY.index),
        )


class RequestTable:
    """All requests that have not ended, by id, in order of arrival."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}
        self._num_added = 0
        self._finished: list[FinishedRequest] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests.values()))

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def get(self, request_id: str) -> Request | None:
        """The request of this id, or None."""
        return self._requests.get(request_id)

    def create(self, admit: Admit, *, context: int) -> Request:
        """A request with the next number; it is in the table only after `insert`."""
        return Request(admit, number=self._num_added, context=context)

    def insert(self, request: Request) -> None:
        """Enter a created request."""
        self._requests[request.request_id] = request
        self._num_added += 1

    def retire(self, request: Request) -> None:
        """Strike the request out and keep the record of its end for `take_finished`."""
        del self._requests[request.request_id]
        self._finished.append(request.finished())

    def take_finished(self) -> list[FinishedRequest]:
        """The records of requests that ended since the last call."""
        finished, self._finished = self._finished, []
        return finished


def _signed(value: int) -> int:
    """`value` wrapped into a signed 64-bit integer."""
    return (value + 2**63) % 2**64 - 2**63
