"""POST /v1/chat/completions: a conversation by the checkpoint's chat template, plain or streamed."""

from typing import Any

from actorllm.messages import ChatPrompt, TokenEvent, TokenLogprob
from actorllm.server.api_types import ChatBody
from actorllm.server.generation import Generation
from actorllm.server.route import GenerationRoute


class ChatRoute(GenerationRoute[ChatBody]):
    """Turns events into chat chunks and whole chat completions."""

    body_type = ChatBody
    chunk_name = "chat.completion.chunk"
    whole_name = "chat.completion"
    id_prefix = "chatcmpl-"

    async def submit(self, generation: Generation, body: ChatBody) -> None:
        continues = bool(body.continue_final_message)
        prompt = ChatPrompt(
            body.messages,
            add_generation_prompt=not continues if body.add_generation_prompt is None else body.add_generation_prompt,
            continue_final_message=continues,
            template_kwargs=body.chat_template_kwargs or {},
        )
        await generation.submit([prompt], body.params(self.engine.default_params), timeout=body.timeout, namespace=body.cache_salt or "")

    def opening(self, generation: Generation, number: int, body: ChatBody) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, generation: Generation, number: int, *, event: TokenEvent, body: ChatBody) -> dict[str, Any]:
        return {
            "index": number,
            "delta": {"content": event.text} if event.text or event.finish is None else {},
            "logprobs": _logprobs([event]) if body.logprobs else None,
            "finish_reason": event.finish,
        }

    def whole(self, generation: Generation, number: int, *, events: list[TokenEvent], body: ChatBody) -> dict[str, Any]:
        text = "".join(event.text for event in events)
        return {
            "index": number,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _logprobs(events) if body.logprobs else None,
            "finish_reason": events[-1].finish,
        }


def _logprobs(events: list[TokenEvent]) -> dict[str, Any]:
    content = [
        {**_entry(event.logprob), "top_logprobs": [_entry(top) for top in event.top_logprobs]}
        for event in events
        if event.logprob is not None
    ]
    return {"content": content, "refusal": None}


def _entry(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.data)}
