"""POST /v1/completions: text completion, plain or streamed. Shapes follow OpenAI's legacy completions API."""

from typing import Any

from actorllm.messages import PromptEvent, TokenEvent, TokenLogprob
from actorllm.server.api_types import CompletionBody
from actorllm.server.generation import Generation
from actorllm.server.route import GenerationRoute


class CompletionRoute(GenerationRoute[CompletionBody]):
    """Turns events into completion chunks and whole completions."""

    body_type = CompletionBody
    chunk_name = whole_name = "text_completion"
    id_prefix = "cmpl-"

    async def submit(self, generation: Generation, body: CompletionBody) -> None:
        params = body.params(self.engine.default_params)
        prompts = body.prompts()
        if body.add_special_tokens is False:
            prompts = [self.plain_text(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        await generation.submit(prompts, params, timeout=body.timeout)

    def opening(self, generation: Generation, body: CompletionBody) -> list[dict[str, Any]]:
        if not body.echo:
            return []
        return [self._choice(number, *self._echo(generation, number, body)) for number in range(generation.num_choices)]

    def delta(self, number: int, event: TokenEvent, body: CompletionBody) -> dict[str, Any]:
        logprobs = _logprobs([event], 0) if body.logprobs is not None else None
        return self._choice(number, event.text, logprobs, event.finish)

    def whole(self, generation: Generation, number: int, events: list[TokenEvent], body: CompletionBody) -> dict[str, Any]:
        prompt_text, prompt_logprobs = self._echo(generation, number, body) if body.echo else ("", None)
        text = prompt_text + "".join(event.text for event in events)
        logprobs = _logprobs(events, len(prompt_text)) if body.logprobs is not None else None
        if logprobs is not None and prompt_logprobs is not None:
            logprobs = {name: [*prompt_logprobs[name], *logprobs[name]] for name in logprobs}
        choice = self._choice(number, text, logprobs, events[-1].finish)
        prompt_event = generation.streams[number // generation.num_choices_per_prompt].prompt_event
        if body.prompt_logprobs is not None and prompt_event is not None:
            choice["prompt_logprobs"] = [entry and _named([entry[0], *entry[1]]) for entry in prompt_event.logprobs]
        return choice

    def _echo(self, generation: Generation, number: int, body: CompletionBody) -> tuple[str, dict[str, Any] | None]:
        """The prompt's text, and its logprobs if they were asked for."""
        stream = generation.streams[number // generation.num_choices_per_prompt]
        text = self.engine.tokenizer.decode(stream.prompt_ids, skip_special_tokens=True)
        if body.logprobs is None or stream.prompt_event is None:
            return text, None
        return text, self._prompt_logprobs(stream.prompt_ids, stream.prompt_event)

    def _prompt_logprobs(self, prompt_ids: list[int], event: PromptEvent) -> dict[str, Any]:
        tokens = [self.engine.tokenizer.token_text(token_id) for token_id in prompt_ids]
        offsets, offset = [], 0
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [entry and entry[0].logprob for entry in event.logprobs],
            "top_logprobs": [entry and _named(entry[1]) for entry in event.logprobs],
            "text_offset": offsets,
        }

    @staticmethod
    def _choice(number: int, text: str, logprobs: dict[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(events: list[TokenEvent], offset: int) -> dict[str, Any]:
    """The legacy columns; `text_offset` counts characters of the choice's text from `offset`."""
    columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for event in events:
        if event.logprob is not None:
            columns["tokens"].append(event.logprob.text)
            columns["token_logprobs"].append(event.logprob.logprob)
            columns["top_logprobs"].append(_named([event.logprob, *event.top_logprobs]))
            columns["text_offset"].append(offset)
        offset += len(event.text)
    return columns


def _named(entries: "list[TokenLogprob] | tuple[TokenLogprob, ...]") -> dict[str, float]:
    """Token text -> logprob; the first of equal texts stays."""
    named: dict[str, float] = {}
    for entry in entries:
        named.setdefault(entry.text, entry.logprob)
    return named


