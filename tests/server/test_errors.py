"""Bad input gets a typed answer with the right status, says the mend, and costs nobody else anything."""

import asyncio
import re
import shutil

import pytest

import actorllm_echo
from tests.server.conftest import post_bytes, serving

ODD_VALUES = [-1, -(2**63), 2**63, 1.5, "1", True, None, [], {}, 10**9, 1e308]
FIELDS = [
    "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "logprobs", "echo", "stream",
    "logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens", "stop_token_ids", "model",
    "stream_options", "prompt_logprobs", "ignore_eos", "skip_special_tokens", "timeout", "best_of", "suffix", "user",
]  # fmt: skip
BAD_BODIES = [
    ({}, 400, "prompt"),
    ({"prompt": "a", "model": "nobody"}, 404, "model"),
    ({"prompt": 5}, 400, "prompt"),
    ({"prompt": [1, "a"]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": [2**31 - 1]}, 400, "prompt"),
    ({"prompt": [2**40]}, 400, "prompt"),
    ({"prompt": "a", "n": 10**9}, 400, "n"),
    ({"prompt": "a", "seed": 2**64}, 400, "seed"),
    ({"prompt": "a", "temperature": -1}, 400, "temperature"),
    ({"prompt": "a", "logprobs": 100}, 400, "logprobs"),
    ({"prompt": "a", "logit_bias": {"999999": 1}}, 400, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, 400, "logit_bias"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"prompt": "a", "best_of": 3}, 400, "best_of"),
    ({"prompt": "a", "tools": [{}]}, 400, "tools"),
    ({"prompt": "a", "response_format": {"type": "json_object"}}, 400, "response_format"),
]
BAD_MESSAGES = [None, "hi", [123], [{}], [{"role": 5, "content": "a"}], [{"role": "user", "content": 5}], []]


@pytest.mark.parametrize(("body", "status", "param"), BAD_BODIES)
async def test_bad_fields_are_named(echo, body: dict, status: int, param: str) -> None:
    got, answer = await echo.post("/v1/completions", body)
    assert got == status, answer
    assert answer["error"]["param"] == param, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}


WRONG_TYPES = [
    ("/v1/completions", {"prompt": "a", "n": True}, "n", "n must be a whole number, or left out, not true or false"),
    ("/v1/completions", {"prompt": "a", "n": 1.0}, "n", "n must be a whole number, or left out, not a number"),
    ("/v1/completions", {"prompt": 5}, "prompt", "prompt must be text or a list, or left out, not a whole number"),
    ("/v1/completions", {"prompt": [[1], [2, "a"]]}, "prompt", "prompt[1][1] must be a whole number, not text"),
    ("/v1/completions", {"prompt": "a", "stop": [1]}, "stop", "stop[0] must be text, not a whole number"),
    ("/v1/completions", {"prompt": "a", "logit_bias": {"1": []}}, "logit_bias", "a value of logit_bias must be a number, not a list"),
    ("/v1/completions", {"prompt": "a", "stream_options": []}, "stream_options", "must be an object, or left out, not a list"),
    ("/v1/completions", {"prompt": "a", "temperature": "hot"}, "temperature", "must be a number, or left out, not text"),
    ("/v1/completions", [], None, "the body must be an object, not a list"),
    ("/v1/chat/completions", {}, "messages", "messages is missing: the request needs it"),
    ("/v1/chat/completions", {"messages": None}, "messages", "messages must be a list, not null"),
    ("/v1/chat/completions", {"messages": [1]}, "messages", "messages[0] must be an object, not a whole number"),
    ("/detokenize", {"tokens": ["a"]}, "tokens", "tokens[0] must be a whole number, not text"),
]


@pytest.mark.parametrize(("path", "body", "param", "sentence"), WRONG_TYPES)
async def test_wrong_types_are_told_in_plain_words(echo, path: str, body: object, param: str | None, sentence: str) -> None:
    status, answer = await echo.post(path, body)
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert sentence in answer["error"]["message"] and "`" not in answer["error"]["message"]


@pytest.mark.parametrize("escape", ["\\ud800", "\\udc00", "a\\uD83D b", "\\ud83d\\ud83d\\ude00"])
async def test_half_of_a_surrogate_pair_is_told(echo, escape: str) -> None:
    for path, body in (("/v1/completions", f'{{"prompt": "{escape}"}}'), ("/tokenize", f'{{"prompt": "x{escape}"}}')):
        status, answer = await post_bytes(echo, path, body.encode())
        assert status == 400 and "half of a surrogate pair" in answer["error"]["message"], answer
    assert (await post_bytes(echo, "/tokenize", b'{"prompt": "\\ud83d\\ude00"}'))[0] == 200
    status, answer = await post_bytes(echo, "/tokenize", b'{"prompt": "\\\\ud800"')
    assert status == 400 and "surrogate" not in answer["error"]["message"]


async def test_a_field_is_blamed_by_the_name_it_was_sent_by(echo) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 21}
    status, answer = await echo.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "top_logprobs")
    assert "top_logprobs must be between 0 and 20, not 21" in answer["error"]["message"]


async def test_bad_messages(echo) -> None:
    for messages in BAD_MESSAGES:
        status, answer = await echo.post("/v1/chat/completions", {"messages": messages})
        assert status == 400, (messages, answer)


async def test_no_odd_value_of_any_field_is_a_500(echo) -> None:
    async def try_one(field: str, value: object) -> tuple[str, object, int, str]:
        body = {"prompt": "the", "max_tokens": 2, field: value}
        async with echo.client.post(echo.address + "/v1/completions", json=body) as response:
            return field, value, response.status, await response.text()

    results = await asyncio.gather(*(try_one(field, value) for field in FIELDS for value in ODD_VALUES))
    bad = [result for result in results if result[2] == 500]
    assert not bad
    assert not [text for *_, text in results if re.search(r"0x[0-9a-f]{6,}|/site-packages|Traceback", text)]
    status, _ = await echo.post("/v1/completions", {"prompt": "the"})
    assert status == 200


async def test_bodies_that_are_no_json_objects(echo) -> None:
    cases = [(b"{", 400), (b"[]", 400), (b'"a"', 400), (b'{"prompt": "a", "temperature": NaN}', 400), (b"\xff\xfe", 400),
             (b'{"prompt": "a", "temperature": 1e999}', 400), (b"[" * 100_000, 400)]  # fmt: skip
    for data, status in cases:
        headers = {"Content-Type": "application/json"}
        async with echo.client.post(echo.address + "/v1/completions", data=data, headers=headers) as response:
            assert response.status == status, (data[:20], await response.text())
    async with echo.client.post(echo.address + "/v1/completions", data="prompt=a", headers={"Content-Type": "text/plain"}) as response:
        assert response.status == 415


async def test_routes_hosts_and_ids(echo) -> None:
    status, answer = await echo.get("/v1/nothing")
    assert status == 404 and "/v1/nothing; routes are" in answer["error"]["message"]
    for route in ("/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/health"):
        assert route in answer["error"]["message"]
    assert (set(answer["error"]), answer["error"]["code"]) == ({"message", "type", "param", "code"}, "NotFound")
    async with echo.client.get(echo.address + "/v1/completions") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        answer = await response.json()
    assert answer["error"]["message"] == "GET is not a method of /v1/completions: use POST"
    assert (set(answer["error"]), answer["error"]["code"]) == ({"message", "type", "param", "code"}, "MethodNotAllowed")
    async with echo.client.post(echo.address + "/v1/completions", json={"prompt": "a" * 5_000_000}) as response:
        assert response.status == 413
        answer = await response.json()
    assert "4194304 bytes" in answer["error"]["message"] and "--max-body" in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    async with echo.client.get(echo.address + "/health", headers={"Host": "evil.example"}) as response:
        assert response.status == 403
    async with echo.client.get(echo.address + "/health", headers={"X-Request-Id": "abc-1"}) as response:
        assert response.status == 200 and response.headers["X-Request-Id"] == "abc-1"
    async with echo.client.get(echo.address + "/health", headers={"X-Big": "x" * 200_000}) as response:
        assert response.status == 400


async def test_a_prompt_over_the_context_names_both_numbers(stories) -> None:
    status, answer = await stories.post("/v1/completions", {"prompt": [5] * 600, "stream": True})
    assert status == 400
    assert "600" in answer["error"]["message"] and "512" in answer["error"]["message"]
    assert answer["error"]["code"] == "PromptTooLong"


@pytest.mark.parametrize("stream", [False, True])
async def test_more_tokens_than_the_context_has_room_for_are_refused_by_the_numbers(stories, *, stream: bool) -> None:
    prompt = {"prompt": [5] * 500, "stream": stream}
    status, answer = await stories.post("/v1/completions", {**prompt, "max_tokens": 20})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "PromptTooLong", "max_tokens")
    for number in ("500", "20", "520", "512", "at most 12"):
        assert number in answer["error"]["message"]
    for fields, param in (({"max_tokens": 4, "min_tokens": 5}, "min_tokens"), ({"min_tokens": 13}, "min_tokens")):
        status, answer = await stories.post("/v1/completions", {**prompt, **fields})
        assert (status, answer["error"]["param"]) == (400, param), answer


async def test_without_max_tokens_a_long_prompt_gets_what_is_left(stories) -> None:
    status, answer = await stories.post("/v1/completions", {"prompt": [5] * 505, "ignore_eos": True})
    assert status == 200 and answer["usage"]["completion_tokens"] == 7
    status, answer = await stories.post("/v1/completions", {"prompt": [5] * 12, "ignore_eos": True, "top_k": -1})
    assert status == 200 and answer["usage"]["completion_tokens"] == 16


async def test_texts_to_tokenize_are_bounded_as_requests_are() -> None:
    async with serving(max_waiting=2, max_running=1) as served:
        body = {"prompt": "the " * 20_000}
        results = await asyncio.gather(*(served.post("/tokenize", body) for _ in range(12)))
        assert {status for status, _ in results} == {200, 429}
        assert sum(status == 200 for status, _ in results) >= 3
        assert {answer["error"]["code"] for status, answer in results if status == 429} == {"QueueFull"}
        assert (await served.post("/tokenize", body))[0] == 200


async def test_no_chat_template_says_so(stories_dir, tmp_path) -> None:
    for source in stories_dir.iterdir():
        if source.name != "tokenizer_config.json":
            shutil.copy(source, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    async with serving(tmp_path) as served:
        status, answer = await served.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
        assert status == 400 and answer["error"]["code"] == "NoChatTemplate"
        assert "chat template" in answer["error"]["message"] and "use /v1/completions" in answer["error"]["message"]


async def test_a_broken_chat_template_is_the_servers_fault_and_names_its_file(tmp_path) -> None:
    shutil.copytree(actorllm_echo.directory(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    async with serving(tmp_path) as served:
        status, answer = await served.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
        assert (status, answer["error"]["code"]) == (500, "BrokenChatTemplate")
        assert "chat_template.jinja" in answer["error"]["message"] and "/v1/completions" in answer["error"]["message"]
        assert (await served.post("/v1/completions", {"prompt": "the"}))[0] == 200


async def test_a_full_queue_refuses_and_the_rest_finish() -> None:
    async with serving(max_waiting=2, max_running=1) as served:
        body = {"prompt": "the", "max_tokens": 60, "temperature": 0}
        results = await asyncio.gather(*(served.post("/v1/completions", body) for _ in range(12)))
        assert sorted(status for status, _ in results) == [200] * 3 + [429] * 9
        assert {answer["error"]["code"] for status, answer in results if status == 429} == {"QueueFull"}
        assert served.engine.statistics().slots_in_use == (0,)


async def test_a_request_that_runs_too_long_is_a_504(stories) -> None:
    status, answer = await stories.post("/v1/completions", {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "timeout": 0.05})
    assert status == 504, answer
    assert answer["error"]["code"] == "RequestTimeout"
