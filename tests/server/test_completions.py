"""/v1/completions and /v1/chat/completions by OpenAI's own client and by hand."""

import json
import math
from pathlib import Path

import msgspec
import openai
import pytest

GREEDY = {"temperature": 0, "max_tokens": 12}


def openai_client(served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=served.address + "/v1", api_key="none", max_retries=0)


async def events_of(served, path: str, body: dict) -> list[dict]:
    """The JSON of every event before [DONE]."""
    async with served.client.post(served.address + path, json={**body, "stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        text = await response.text()
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_the_real_model_gives_its_golden_text_over_http(stories, stories_dir: Path) -> None:
    golden = msgspec.json.decode((stories_dir / "golden_greedy.json").read_bytes())
    num_tokens = len(golden["greedy_ids"]) - len(golden["prompt_ids"])
    body = {"prompt": golden["prompt_ids"], "temperature": 0, "max_tokens": num_tokens, "ignore_eos": True}
    status, whole = await stories.post("/v1/completions", body)
    assert status == 200
    text = whole["choices"][0]["text"]
    assert text.strip() in golden["text"] or golden["text"] in text
    assert whole["usage"]["completion_tokens"] == num_tokens
    chunks = await events_of(stories, "/v1/completions", body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


async def test_openai_client_chat_streamed_equals_whole(stories) -> None:
    client = openai_client(stories)
    messages = [{"role": "user", "content": "Once upon a time"}]
    whole = await client.chat.completions.create(model="stories260K", messages=messages, **GREEDY)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.completion_tokens == 12
    stream = await client.chat.completions.create(
        model="stories260K", messages=messages, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(not chunk.choices or chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices].count("length") == 1
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


async def test_choices_are_prompts_times_n_in_order(echo) -> None:
    body = {"prompt": ["the quick", "the lazy"], "n": 2, "max_tokens": 3, "temperature": 0}
    status, whole = await echo.post("/v1/completions", body)
    assert status == 200
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in whole["choices"]]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert whole["usage"]["completion_tokens"] == 12
    chunks = await events_of(echo, "/v1/completions", body)
    joined = [""] * 4
    for chunk in chunks:
        joined[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert joined == texts


async def test_n_choices_under_one_seed_differ_and_repeat(stories) -> None:
    body = {"prompt": "Once", "n": 3, "max_tokens": 20, "seed": 5, "temperature": 1.0}
    (_, first), (_, second) = await stories.post("/v1/completions", body), await stories.post("/v1/completions", body)
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in second["choices"]]
    assert len(set(texts)) == 3


async def test_stop_strings_are_not_shown_and_usage_counts_to_the_stop(stories) -> None:
    status, whole = await stories.post("/v1/completions", {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 60, "stop": [" named"]})
    assert status == 200
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert " named" not in whole["choices"][0]["text"]
    assert 0 < whole["usage"]["completion_tokens"] < 60


async def test_echo_with_logprobs_scores_the_prompt(stories) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 0, "echo": True, "logprobs": 2}
    status, whole = await stories.post("/v1/completions", body)
    assert status == 200
    logprobs = whole["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert all(math.isfinite(value) and value <= 0 for value in logprobs["token_logprobs"][1:])
    assert len(logprobs["tokens"]) == whole["usage"]["prompt_tokens"] == len(logprobs["text_offset"])
    assert whole["choices"][0]["text"].strip() == "Once upon a time"
    assert whole["usage"]["completion_tokens"] == 0


async def test_chat_logprobs_join_to_the_text(stories) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 3, **GREEDY}
    _, whole = await stories.post("/v1/chat/completions", body)
    choice = whole["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content).strip() == choice["message"]["content"].strip()
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert entry["logprob"] <= 0
        assert entry["top_logprobs"][0]["logprob"] >= entry["logprob"] - 1e-6


async def test_explicit_nulls_mean_defaults(echo) -> None:
    names = ("n", "seed", "stop", "logprobs", "logit_bias", "user", "stream", "stream_options", "tools", "top_p", "max_tokens")
    status, _ = await echo.post("/v1/completions", {"prompt": "the", **dict.fromkeys(names)})
    assert status == 200


async def test_logit_bias_bans_and_forces(echo) -> None:
    _, plain = await echo.post("/v1/completions", {"prompt": "the quick", "max_tokens": 1, "temperature": 0, "logprobs": 0})
    _, tokens = await echo.post("/tokenize", {"prompt": plain["choices"][0]["text"], "add_special_tokens": False})
    banned = {str(token_id): -100 for token_id in tokens["tokens"]}
    _, other = await echo.post("/v1/completions", {"prompt": "the quick", "max_tokens": 1, "temperature": 0, "logit_bias": banned})
    assert other["choices"][0]["text"] != plain["choices"][0]["text"]


@pytest.mark.parametrize("stream", [False, True])
async def test_continuous_usage(echo, stream: bool) -> None:
    body = {"prompt": "the", "max_tokens": 3, "temperature": 0}
    if stream:
        body["stream_options"] = {"continuous_usage_stats": True}
        chunks = await events_of(echo, "/v1/completions", body)
        assert chunks[-1]["usage"]["completion_tokens"] == 3
    else:
        _, whole = await echo.post("/v1/completions", body)
        assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + 3
