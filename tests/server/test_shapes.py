"""The finer points of answers: scored prompts, offsets, streams of several choices, usage in chunks."""

import json
from typing import Any

import openai
import pytest

from tests.server.conftest import Served

COMPLETIONS = "/v1/completions"


async def chunks_of(served: Served, body: dict, path: str = COMPLETIONS) -> list[dict]:
    """The JSON of every event before [DONE]."""
    async with served.client.post(served.address + path, json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def joined(chunks: list[dict], index: int) -> dict[str, Any]:
    """One choice put together from its chunks."""
    text, columns, finish = "", {}, []
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                text += choice["text"]
                finish += [choice["finish_reason"]] if choice["finish_reason"] else []
                for name, values in (choice["logprobs"] or {}).items():
                    columns.setdefault(name, []).extend(values)
    assert len(finish) == 1
    return {"index": index, "text": text, "logprobs": columns or None, "finish_reason": finish[0]}


@pytest.mark.parametrize("prompt", ["Once upon a time", ["Once upon", "H\u00e9, said", "A"], [[5, 9], [7]], [5]], ids=repr)
@pytest.mark.parametrize("max_tokens", [0, 3])
async def test_streamed_choices_join_to_the_whole_ones_with_scored_prompts(stories: Served, prompt: Any, max_tokens: int) -> None:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": max_tokens, "echo": True, "logprobs": 2}
    status, whole = await stories.post(COMPLETIONS, body)
    assert status == 200
    chunks = await chunks_of(stories, body)
    for choice in whole["choices"]:
        streamed = joined(chunks, choice["index"])
        assert (streamed["text"], streamed["finish_reason"]) == (choice["text"], choice["finish_reason"])
        for name in ("tokens", "text_offset"):
            assert streamed["logprobs"][name] == choice["logprobs"][name]
        # another batch rounds its sums otherwise
        assert streamed["logprobs"]["token_logprobs"] == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)
    num_scored = sum(len(choice["logprobs"]["tokens"]) for choice in whole["choices"])
    assert num_scored == whole["usage"]["total_tokens"]
    for choice in whole["choices"]:
        assert choice["logprobs"]["token_logprobs"][0] is None
        assert None not in choice["logprobs"]["token_logprobs"][1:]


async def test_offsets_point_at_their_tokens(stories: Served) -> None:
    body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 5, "echo": True, "logprobs": 0}
    _, whole = await stories.post(COMPLETIONS, body)
    text, logprobs = whole["choices"][0]["text"], whole["choices"][0]["logprobs"]
    for token, offset in list(zip(logprobs["tokens"], logprobs["text_offset"], strict=True))[1:]:  # the first is BOS
        assert text[offset:].startswith(token) or (offset == 0 and text.startswith(token.lstrip()))


async def test_prompt_logprobs_come_with_each_choice(stories: Served) -> None:
    _, whole = await stories.post(COMPLETIONS, {"prompt": "Once upon", "prompt_logprobs": 1, "max_tokens": 1, "n": 2})
    for choice in whole["choices"]:
        assert choice["prompt_logprobs"][0] is None
        assert len(choice["prompt_logprobs"]) == whole["usage"]["prompt_tokens"]
        assert choice["logprobs"] is None
    messages = [{"role": "user", "content": "Hi"}]
    _, chat = await stories.post("/v1/chat/completions", {"messages": messages, "prompt_logprobs": 0, "max_tokens": 1})
    assert len(chat["choices"][0]["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    status, answer = await stories.post(COMPLETIONS, {"prompt": "Once", "prompt_logprobs": 1, "stream": True})
    assert (status, answer["error"]["param"]) == (400, "prompt_logprobs")


async def test_logprobs_and_their_absence(stories: Served) -> None:
    _, none = await stories.post(COMPLETIONS, {"prompt": "Once", "max_tokens": 3})
    assert none["choices"][0]["logprobs"] is None
    _, zero = await stories.post(COMPLETIONS, {"prompt": "Once", "max_tokens": 3, "logprobs": 0})
    assert [len(top) for top in zero["choices"][0]["logprobs"]["top_logprobs"]] == [1, 1, 1]
    messages = [{"role": "user", "content": "Hi"}]
    _, chat = await stories.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2, "logprobs": True})
    assert [entry["top_logprobs"] for entry in chat["choices"][0]["logprobs"]["content"]] == [[], []]
    _, plain = await stories.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2})
    assert plain["choices"][0]["logprobs"] is None and plain["choices"][0]["message"]["refusal"] is None


async def test_usage_of_streams(echo: Served) -> None:
    body = {"prompt": ["the", "a"], "n": 2, "max_tokens": 3, "temperature": 0}
    _, whole = await echo.post(COMPLETIONS, body)
    assert all("usage" not in chunk for chunk in await chunks_of(echo, body))
    last = await chunks_of(echo, {**body, "stream_options": {"include_usage": True}})
    assert last[-1]["choices"] == [] and last[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in last[:-1])
    options = {"include_usage": True, "continuous_usage_stats": True}
    always = await chunks_of(echo, {**body, "stream_options": options})
    counts = [chunk["usage"]["completion_tokens"] for chunk in always]
    assert counts == sorted(counts) and counts[-1] == 12
    assert (await echo.post(COMPLETIONS, {**body, "stream_options": {}}))[0] == 200


async def test_openais_client_streams_completions_and_meets_our_errors(echo: Served) -> None:
    async with openai.AsyncOpenAI(base_url=echo.address + "/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model="echo", prompt="the", max_tokens=4, temperature=0, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
        whole = await client.completions.create(model="echo", prompt="the", max_tokens=4, temperature=0)
        assert text == whole.choices[0].text
        assert [model.id async for model in client.models.list()] == ["echo"]
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="other", prompt="the")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "a"}], tools=[{"type": "function", "function": {"name": "f"}}]
            )
        assert refused.value.param == "tools"


async def test_tokenize_reads_conversations(echo: Served) -> None:
    messages = [{"role": "user", "content": "hi"}]
    _, tokens = await echo.post("/tokenize", {"messages": messages})
    _, text = await echo.post("/detokenize", {"tokens": tokens["tokens"]})
    assert text["prompt"].endswith("assistant:")
    _, whole = await echo.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    assert whole["usage"]["prompt_tokens"] == tokens["count"]
