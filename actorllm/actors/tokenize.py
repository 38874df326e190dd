"""The tokenize actor: text or a conversation becomes token ids, is checked against the model, and is admitted.

Several prompts are encoded at once; the library encodes off the event loop. Knows no scheduling: it asks, and passes
the answer on.
"""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from actorllm.context import Context, TokenLimit
from actorllm.errors import InvalidRequest, RequestError, RequestFailed
from actorllm.messages import (
    Accepted,
    Admit,
    ChatPrompt,
    Generate,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    pack,
    unpack,
)
from actorllm.runtime.actor import Actor
from actorllm.runtime.ref import ActorCrashed, Ref
from actorllm.tokenizer.chat_template import ChatTemplate
from actorllm.tokenizer.load import Tokenizer


@dataclass(frozen=True)
class ModelLimits:
    """What a request is checked against."""

    vocab_size: int
    eos_ids: tuple[int, ...]
    context: Context

    def check_ids(self, ids: Collection[int], *, param: str) -> None:
        """Raises `InvalidRequest` that names an id outside of the vocabulary."""
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            wrong = next(token_id for token_id in ids if not 0 <= token_id < self.vocab_size)
            raise InvalidRequest(
                f"{param}: token id {wrong} is outside of the vocabulary (0 to {self.vocab_size - 1})", param=param
            )


class TokenizeActor(Actor[Generate]):
    """Answers `Generate` with `Accepted` once schedule has admitted the request."""

    concurrency = 16
    rejections = (RequestError,)

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, *, limits: ModelLimits, schedule: Ref) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._limits = limits
        self._schedule = schedule

    async def receive(self, message: Generate) -> Accepted:
        ids = await encode_prompt(self._tokenizer, self._template, prompt=message.prompt, limit=self._limits.context.for_prompts)
        self._limits.check_ids(ids, param="prompt")
        if not ids:
            raise InvalidRequest("the prompt is empty: it must have at least one token", param="prompt")
        admit = Admit(
            request_id=message.request_id,
            prompt_ids=pack(ids),
            params=self._resolve(message.params),
            eos_ids=self._limits.eos_ids,
            arrived=message.arrived,
            wait_deadline=message.wait_deadline,
            run_deadline=message.run_deadline,
            namespace=message.namespace,
        )
        try:
            await self._schedule.ask(admit)
        except ActorCrashed as error:
            raise RequestFailed("the scheduler restarted while it admitted this request; send it again") from error
        return Accepted(message.request_id, admit.prompt_ids)

    def _resolve(self, params: SamplingParams) -> SamplingParams:
        """Parameters with a seed, so that a recomputed request repeats itself."""
        self._limits.check_ids(params.stop_token_ids, param="stop_token_ids")
        self._limits.check_ids(params.logit_bias, param="logit_bias")
        return msgspec.structs.replace(params, seed=secrets.randbits(62)) if params.seed is None else params


async def encode_prompt(tokenizer: Tokenizer, template: ChatTemplate, *, prompt: Prompt, limit: TokenLimit) -> Sequence[int]:
    """The token ids of a prompt of any kind. Raises `InvalidRequest`, `PromptTooLong` or `NoChatTemplate`."""
    if isinstance(prompt, TextPrompt):
        return await tokenizer.encode(prompt.text, add_special_tokens=prompt.add_special_tokens, limit=limit)
    if isinstance(prompt, ChatPrompt):
        text = await template.render(
            prompt.messages,
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final_message=prompt.continue_final_message,
            kwargs=prompt.template_kwargs,
            tokenizer=tokenizer,
        )
        # BOS stands where the template writes it, and nowhere else
        return await tokenizer.encode(text, add_special_tokens=False, limit=limit)
    check_len(prompt, limit)
    return unpack(prompt.token_ids)


def check_len(prompt: Prompt, limit: TokenLimit) -> None:
    """Raises `PromptTooLong` for a prompt whose tokens need only be counted."""
    if isinstance(prompt, TokenPrompt):
        limit.check(len(unpack(prompt.token_ids)))
