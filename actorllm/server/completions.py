"""POST /v1/completions: text completion, plain or streamed. Shapes follow OpenAI's legacy completions API."""

from typing import Any

from actorllm.messages import TokenEvent
from actorllm.server.api_types import CompletionBody
from actorllm.server.generation import Generation
from actorllm.server.route import GenerationRoute, named_logprobs


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
        await generation.submit(prompts, params, timeout=body.timeout, namespace=body.cache_salt or "")

    def opening(self, generation: Generation, number: int, body: CompletionBody) -> dict[str, Any] | None:
        if not body.echo:
            return None
        text, logprobs = self._echo(generation, number, body)
        generation.text_lens[number] += len(text)
        return self._choice(number, text, logprobs=logprobs)

    def delta(self, generation: Generation, number: int, *, event: TokenEvent, body: CompletionBody) -> dict[str, Any]:
        logprobs = _logprobs([event], generation.text_lens[number]) if body.logprobs is not None else None
        generation.text_lens[number] += len(event.text)
        return self._choice(number, event.text, logprobs=logprobs, finish=event.finish)

    def whole(self, generation: Generation, number: int, *, events: list[TokenEvent], body: CompletionBody) -> dict[str, Any]:
        prompt_text, prompt_logprobs = self._echo(generation, number, body) if body.echo else ("", None)
        text = prompt_text + "".join(event.text for event in events)
        logprobs = _logprobs(events, len(prompt_text)) if body.logprobs is not None else None
        if logprobs is not None and prompt_logprobs is not None:
            logprobs = {name: [*prompt_logprobs[name], *logprobs[name]] for name in logprobs}
        return self._choice(number, text, logprobs=logprobs, finish=events[-1].finish)

    def _echo(self, generation: Generation, number: int, body: CompletionBody) -> tuple[str, dict[str, Any] | None]:
        """The prompt's text, and its logprobs if they were asked for."""
        stream = generation.stream_of(number)
        text = self.engine.tokenizer.decode(stream.prompt_ids, skip_special_tokens=True)
        if body.logprobs is None:
            return text, None
        entries = stream.prompt_event.logprobs if stream.prompt_event else (None,)  # one token: nothing before it
        pieces = [self.engine.tokenizer.token_bytes(token_id) for token_id in stream.prompt_ids]
        return text, {
            "tokens": [piece.decode(errors="replace") for piece in pieces],
            "token_logprobs": [entry and entry[0].logprob for entry in entries],
            "top_logprobs": [entry and named_logprobs([entry[0], *entry[1]]) for entry in entries],
            "text_offset": _offsets(pieces, len(text)),
        }

    @staticmethod
    def _choice(number: int, text: str, *, logprobs: dict[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _offsets(pieces: list[bytes], text_len: int) -> list[int]:
    """Where each piece begins in a text of `text_len` characters. What the text leaves out (a BOS, a leading space) stood
    before it; a piece that begins within a character counts from after it."""
    begins, num_characters = [], 0
    for piece in pieces:
        begins.append(num_characters)
        num_characters += sum(byte & 0xC0 != 0x80 for byte in piece)  # all but UTF-8's continuation bytes
    return [max(begin - (num_characters - text_len), 0) for begin in begins]


def _logprobs(events: list[TokenEvent], offset: int) -> dict[str, Any]:
    """The legacy columns; `text_offset` counts characters of the choice's text from `offset`."""
    columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for event in events:
        if event.logprob is not None:
            columns["tokens"].append(event.logprob.text)
            columns["token_logprobs"].append(event.logprob.logprob)
            columns["top_logprobs"].append(named_logprobs([event.logprob, *event.top_logprobs]))
            columns["text_offset"].append(offset)
        offset += len(event.text)
    return columns

