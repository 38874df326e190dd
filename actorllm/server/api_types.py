"""The bodies of requests, as OpenAI's clients send them, and what they mean for the engine.

An explicit null means the default. Unknown fields are ignored, as OpenAI's server does with most, but known ones that
are not built are refused by name. Knows no HTTP.
"""

import re
from typing import Any

import msgspec
from msgspec import Struct

from actorllm.errors import InvalidRequest, UnsupportedField
from actorllm.messages import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS, ChatPrompt, SamplingParams, TextPrompt, check_count

# Known fields that are not built yet -> values that ask for nothing.
UNSUPPORTED_FIELDS: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "ebnf": (),
    "function_call": ("none",),
    "functions": ([],),
    "grammar": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "json_schema": (),
    "modalities": (["text"],),
    "parallel_tool_calls": (),
    "prediction": (),
    "prompt_embeds": (),
    "reasoning_effort": (),
    "regex": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}
# Where a client's field has another name or form than ours, or does not concern sampling at all.
PASSED_ON = frozenset(SamplingParams.__struct_fields__) - {"stop", "logprobs", "max_tokens", "usual_tokens", "n"}
MAX_CHOICES = 1024
"""Prompts times n of one HTTP request."""

MAX_TOKEN_ID = 2**31 - 1
DEFAULT_COMPLETION_TOKENS = 16


class StreamOptions(Struct):
    """What a stream tells beside tokens."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class RequestBody(Struct, kw_only=True):
    """What both generating routes share. Sampling fields are typed as JSON may bring them and checked by
    `SamplingParams`."""

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    timeout: float | None = None
    user: str | None = None
    cache_salt: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    prompt_logprobs: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def longest(self) -> int | None:
        """The most tokens of a choice, by the field's newer name or its older one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def is_streamed(self) -> bool:
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_usage_always(self) -> bool:
        """Whether every chunk tells the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling(self, defaults: SamplingParams, **own: Any) -> SamplingParams:
        """The request's parameters: its own fields, then the checkpoint's defaults. Raises `InvalidRequest`."""
        given = {name: value for name in PASSED_ON if (value := getattr(self, name)) is not None}
        if self.logit_bias is not None:
            check_count("logit_bias", len(self.logit_bias), most=MAX_BIASES)
            given["logit_bias"] = {_token_id(key): value for key, value in self.logit_bias.items()}
        if self.stop is not None:
            given["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if self.stop_token_ids is not None:
            check_count("stop_token_ids", len(self.stop_token_ids), most=MAX_STOP_IDS)
            given["stop_token_ids"] = tuple(
                _checked_id(token_id, param="stop_token_ids") for token_id in self.stop_token_ids
            )
        if self.n is not None:
            given["n"] = self.n
        return msgspec.structs.replace(defaults, **given, **own)


class CompletionBody(RequestBody, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[int | str | list[int]] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """One entry per prompt; choices come in their order. Raises `InvalidRequest`."""
        prompt = self.prompt
        if prompt is None or prompt == []:
            raise InvalidRequest("prompt is missing: give text, token ids, or a list of either", param="prompt")
        if isinstance(prompt, str):
            return [prompt]
        kinds = {type(entry) for entry in prompt}
        if len(kinds) > 1:
            raise InvalidRequest("a list of prompts must be all text or all token ids", param="prompt")
        prompts: Any = [prompt] if kinds == {int} else prompt
        if len(prompts) * (self.n or 1) > MAX_CHOICES:
            raise InvalidRequest(
                f"{len(prompts)} prompts with n {self.n or 1} are more than {MAX_CHOICES} choices: send several requests",
                param="prompt",
            )
        return prompts

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """Sampling parameters; `echo` with `logprobs` scores the prompt as well."""
        own: dict[str, Any] = {
            "max_tokens": self.longest,
            "usual_tokens": max(DEFAULT_COMPLETION_TOKENS, self.min_tokens or 0),
            "logprobs": self.logprobs,
        }
        if self.echo and self.logprobs is not None and self.prompt_logprobs is None:
            own["prompt_logprobs"] = self.logprobs
        return self.sampling(defaults, **own)


class ChatBody(RequestBody, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """Sampling parameters; without a limit the answer may fill the context."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            raise InvalidRequest(
                f"top_logprobs must be between 0 and {MAX_LOGPROBS}, not {self.top_logprobs}", param="top_logprobs"
            )
        return self.sampling(defaults, max_tokens=self.longest, logprobs=(self.top_logprobs or 0) if self.logprobs else None)


class TokenizeBody(Struct):
    """POST /tokenize: text, or a conversation by the chat template."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None

    def as_prompt(self) -> TextPrompt | ChatPrompt:
        """What is to be tokenized. Raises `InvalidRequest` unless it is exactly one of both."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("give either prompt or messages", param="prompt")
        if self.messages is not None:
            return ChatPrompt(self.messages, add_generation_prompt=self.add_generation_prompt is not False)
        return TextPrompt(self.prompt or "", add_special_tokens=self.add_special_tokens is not False)


class DetokenizeBody(Struct):
    """POST /detokenize."""

    tokens: list[int]


def check_together(body: RequestBody) -> None:
    """What no single field's type can say."""
    if body.stream_options not in (None, StreamOptions()) and not body.is_streamed:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    if body.prompt_logprobs is not None and body.is_streamed:
        raise UnsupportedField("prompt_logprobs comes with whole answers only: set stream: false", param="prompt_logprobs")
    if body.timeout is not None and not 0 < body.timeout < 1e6:
        raise InvalidRequest("timeout must be a number of seconds above 0", param="timeout")


def _token_id(key: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}", key):
        raise InvalidRequest(f"logit_bias: {key[:40]!r} is not a token id", param="logit_bias")
    return _checked_id(int(key), param="logit_bias")


def _checked_id(token_id: int, *, param: str) -> int:
    """A token id that fits a message; whether the vocabulary has it is checked further on."""
    if not 0 <= token_id <= MAX_TOKEN_ID:
        raise InvalidRequest(f"{param}: {token_id} is not a token id", param=param)
    return token_id
