"""Every message that travels between actors, in the order of a prompt's way through the house.

    Generate -> tokenize -> Admit -> schedule <-> Step / StepDone <-> execute
                                        |
                                        +-> Outputs -> detokenize -> TokenEvents -> the request's stream

and two urgent messages that may overtake: `Abort` (to schedule) and `StopFound` (detokenize to schedule). Arrays travel as
little-endian bytes, int32 unless said otherwise; `pack` and `unpack` convert them. Per step, not per token: one `Step`, one
`StepDone` and one `Outputs` carry the whole batch.

Legend of lengths: T tokens of the flat batch, R rows in it, S samples, G cache groups.
This file knows no torch and no asyncio.
"""

import math
from array import array
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from actorllm.errors import ActorLLMError, InvalidRequest, error_named

FinishReason = Literal["stop", "length", "abort", "error"]
MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_BIASES, MAX_STOP_IDS = 1024, 256


def pack(values: Iterable[int]) -> bytes:
    """int32 bytes of `values`."""
    return array("i", values).tobytes()


def unpack(data: bytes) -> array:
    """The int32 array behind `data`."""
    values = array("i")
    values.frombytes(data)
    return values


def unpack_floats(data: bytes) -> array:
    """The float32 array behind `data`."""
    values = array("f")
    values.frombytes(data)
    return values


# --- what a client asks for -------------------------------------------------------------------------


def check_count(name: str, count: int, *, most: int) -> None:
    """Raises `InvalidRequest` for a field with too many entries."""
    if count > most:
        raise InvalidRequest(f"{name} has {count} entries, but takes at most {most}", param=name)


class SamplingParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one request is sampled. Out-of-range values raise `InvalidRequest` naming the field.

    `temperature` 0 is greedy. `top_k` 0 or -1, `top_p` 1, `min_p` 0 are off. Repetition penalty follows CTRL
    (arXiv 1909.05858) over prompt and output; presence and frequency follow OpenAI over the output. `logprobs`
    and `prompt_logprobs` give the raw distribution's values for the chosen token and the top n (0: the chosen
    one alone). `max_tokens` None means up to `usual_tokens` or the context. Choice i of n is seeded with `seed + i`.
    """

    max_tokens: int | None = None
    usual_tokens: int | None = None
    min_tokens: int = 0
    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name in ("max_tokens", "min_tokens", "usual_tokens"):
            self._check_range(name, getattr(self, name), low=0, high=2**31 - 1)
        self._check_range("n", self.n, low=1, high=MAX_CHOICES)
        self._check_range("temperature", self.temperature, low=0.0, high=100.0)
        self._check_range("top_k", self.top_k, low=-1, high=2**31 - 1)
        self._check_range("top_p", self.top_p, low=0.0, high=1.0)
        self._check_range("min_p", self.min_p, low=0.0, high=1.0)
        self._check_range("repetition_penalty", self.repetition_penalty, low=1e-3, high=100.0)
        self._check_range("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        self._check_range("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        self._check_range("seed", self.seed, low=-(2**63), high=2**63 - 1)
        self._check_range("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS)
        self._check_range("prompt_logprobs", self.prompt_logprobs, low=0, high=MAX_LOGPROBS)
        check_count("logit_bias", len(self.logit_bias), most=MAX_BIASES)
        check_count("stop_token_ids", len(self.stop_token_ids), most=MAX_STOP_IDS)
        for bias in self.logit_bias.values():
            self._check_range("logit_bias", bias, low=-100.0, high=100.0)
        if self.top_p == 0.0:
            raise InvalidRequest("top_p must be above 0; use temperature 0 for greedy", param="top_p")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}: lower it", param="min_tokens")
        if len(self.stop) > MAX_STOPS or "" in self.stop:
            raise InvalidRequest(f"stop takes at most {MAX_STOPS} strings, none empty", param="stop")

    def _check_range(self, name: str, value: float | None, *, low: float, high: float) -> None:
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}", param=name)


class TextPrompt(Struct, frozen=True, tag="text"):
    """Text as it is; special tokens (BOS) are added as the tokenizer's own configuration says."""

    text: str
    add_special_tokens: bool = True


class TokenPrompt(Struct, frozen=True, tag="tokens"):
    """Token ids (int32 bytes), used unchanged."""

    token_ids: bytes


class ChatPrompt(Struct, frozen=True, tag="chat"):
    """A conversation for the chat template. `messages` are JSON objects as clients send them."""

    messages: list[dict]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: dict = {}


Prompt = TextPrompt | TokenPrompt | ChatPrompt


class Generate(Struct, frozen=True, tag=True, kw_only=True):
    """A request enters the house. Times are `time.monotonic()` seconds. What is computed for it is shared with others of its
    `namespace` only.

    Answered by `Accepted`, or by a `RequestError`.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams
    arrived: float
    wait_deadline: float | None = None
    run_deadline: float | None = None
    namespace: str = ""


class Accepted(Struct, frozen=True, tag=True):
    """The answer to `Generate`: the request waits to be scheduled. `prompt_ids` are int32 bytes."""

    request_id: str
    prompt_ids: bytes


# --- tokenize -> schedule -----------------------------------------------------------------------------


class Admit(Struct, frozen=True, tag=True, kw_only=True):
    """A tokenized request. `seed` in `params` is resolved (never None); `eos_ids` end the output
    unless `params.ignore_eos`. `key_ids` (int32 bytes, one a token) stand for the prompt where prompts of a `namespace` are
    matched; empty, the prompt's own ids do. Answered by None, or by `QueueFull` / `PromptTooLong` / `InvalidRequest`."""

    request_id: str
    prompt_ids: bytes
    params: SamplingParams
    eos_ids: tuple[int, ...]
    arrived: float
    wait_deadline: float | None = None
    run_deadline: float | None = None
    namespace: str = ""
    key_ids: bytes = b""


class Abort(Struct, frozen=True, tag=True):
    """Urgent: end this request wherever it is. Unknown ids are ignored."""

    request_id: str


class StopFound(Struct, frozen=True, tag=True):
    """Urgent, detokenize to schedule: a stop string ended at output token `token_index` of the choice."""

    request_id: str
    choice: int
    token_index: int


class Tick(Struct, frozen=True, tag=True):
    """Urgent, schedule to itself: a deadline has passed."""


# --- schedule <-> execute -------------------------------------------------------------------------------


class RowSampling(Struct, frozen=True, array_like=True):
    """What the device must know to sample one row; see `SamplingParams` for the meanings.

    `seed` is this choice's own. `banned_ids` may not be sampled while fewer than `min_tokens` outputs exist.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int
    logprobs: int | None
    min_tokens: int
    banned_ids: tuple[int, ...]


class RowOpen(Struct, frozen=True, array_like=True):
    """A sequence takes device row `row`, with the states that row `state_of` (-1: none) has after this step.

    `slots` are, per cache group, those of positions `prefix_start[g]` and on that are computed already, shared with a sibling or
    another prompt. `prompt_ids` (if a penalty needs them) and `output_ids` seed the penalty counts and the sampling position.
    """

    row: int
    sampling: RowSampling
    prompt_ids: bytes
    output_ids: bytes
    prefix_start: tuple[int, ...]
    slots: tuple[bytes, ...]
    state_of: int = -1


class Step(Struct, frozen=True, tag=True, kw_only=True):
    """One forward pass over a flat batch, then sampling.

    A token id of -1 stands for the row's last sampled id, which is on the device already. Entry r of `rows`
    has `query_lens[r]` consecutive tokens, after which its sequence holds `seq_lens[r]`. Sample s reads flat token
    `sample_rows[s]` and belongs to device row `sample_to[s]` (n choices read one token). `sample_positions[s]`
    is the output index being sampled. `prompt_logprobs` lists batch entries (index into `rows`) with the number
    of top tokens wanted; the logprob of token t+1 of the prompt is read at token t, its ids come in `prompt_next`
    (int32 bytes, one id a token of that entry, -1 where there is no next prompt token).
    `closed` rows end before `opened` ones begin.
    """

    epoch: int
    number: int
    closed: tuple[int, ...]
    opened: tuple[RowOpen, ...]
    rows: bytes
    query_lens: bytes
    seq_lens: bytes
    token_ids: bytes
    positions: bytes
    write_slots: tuple[bytes, ...]
    sample_rows: bytes
    sample_to: bytes
    sample_positions: bytes
    prompt_logprobs: tuple[tuple[int, int, bytes], ...] = ()


class TopLogprobs(Struct, frozen=True, array_like=True):
    """For a run of tokens: each token's own logprob (float32 bytes [N]) and the `width` best ids
    (int32 [N * width]) with their logprobs (float32 [N * width])."""

    width: int
    chosen: bytes
    ids: bytes
    values: bytes


class StepDone(Struct, frozen=True, tag=True, kw_only=True):
    """Urgent: the step's results. `sampled` int32 [S]; `logprobs[s]` only for rows that asked;
    `prompt_logprobs` in the order of the Step's list. Seconds are measured on the device thread."""

    epoch: int
    number: int
    sampled: bytes
    logprobs: tuple[TopLogprobs | None, ...] = ()
    prompt_logprobs: tuple[TopLogprobs, ...] = ()
    seconds: float = 0.0


# --- schedule -> detokenize ---------------------------------------------------------------------------


class Failure(Struct, frozen=True, array_like=True):
    """A typed error on its way: the class name in `errors.py`, the sentence, the field at fault."""

    kind: str
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: ActorLLMError) -> "Failure":
        return cls(type(error).__name__, error.message, error.param)

    def error(self) -> ActorLLMError:
        """The exception this failure stands for."""
        return error_named(self.kind)(self.message, param=self.param)


class Opened(Struct, frozen=True, array_like=True):
    """What detokenize must know of a request before its first tokens. `num_cached` tokens of the prompt were there already."""

    request_id: str
    prompt_ids: bytes
    n: int
    stop: tuple[str, ...]
    min_tokens: int
    skip_special_tokens: bool
    num_cached: int = 0


class RowOutput(Struct, frozen=True, array_like=True):
    """New tokens of one choice: ids (int32 bytes) from output index `start` on.

    `finish` comes with the choice's last tokens, or alone. With "stop" by a stop token, that token is the last
    id and has no text. `finish` "error" and "abort" carry the `failure`.
    """

    request_id: str
    choice: int
    start: int
    ids: bytes
    logprobs: TopLogprobs | None = None
    finish: FinishReason | None = None
    failure: Failure | None = None
    is_stop_token: bool = False


class PromptScores(Struct, frozen=True, array_like=True):
    """Logprobs of a prompt's tokens 1 .. P-1 (the first has none)."""

    request_id: str
    scores: TopLogprobs


class Outputs(Struct, frozen=True, tag=True):
    """All that one scheduling round has for detokenize."""

    opened: tuple[Opened, ...] = ()
    rows: tuple[RowOutput, ...] = ()
    prompts: tuple[PromptScores, ...] = ()


# --- detokenize -> the request's stream -------------------------------------------------------------------


class TokenLogprob(Struct, frozen=True, array_like=True):
    """One candidate: its id, its own text (replacement characters where it is a part of a character),
    its bytes, and its logprob in the raw distribution."""

    token_id: int
    text: str
    data: bytes
    logprob: float


class TokenEvent(Struct, frozen=True, array_like=True):
    """One output token of one choice, or its end.

    The texts of a choice's events join to its whole text; a token may bring "" while a character or a possible
    stop string is held back. `token_id` is -1 in an end event that brings no token. Exactly one event of a
    choice has a `finish`. `index` counts the choice's events from 0, without gaps.
    """

    request_id: str
    choice: int
    index: int
    token_id: int
    text: str
    logprob: TokenLogprob | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    failure: Failure | None = None


class PromptEvent(Struct, frozen=True, array_like=True):
    """The prompt's logprobs: one entry a token, None for the first; comes before the first TokenEvent."""

    request_id: str
    logprobs: tuple[tuple[TokenLogprob, tuple[TokenLogprob, ...]] | None, ...]


class TokenEvents(Struct, frozen=True, tag=True):
    """All that one detokenizing round has for the streams. `cached` says of requests how many tokens of their prompts were there
    already."""

    events: tuple[TokenEvent, ...] = ()
    prompts: tuple[PromptEvent, ...] = ()
    cached: tuple[tuple[str, int], ...] = ()
