"""Handlers against an engine that does what the test says: clients that leave, failures at every moment, parameters."""

import asyncio
import json
import re
import time
from typing import Any

import pytest
from aiohttp import web

from actorllm.errors import DeviceLost, QueueFull, QueueTimeout, RequestTimeout
from tests.server.fake_server import Fake, until

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


# --- clients that leave ---


@pytest.mark.parametrize("moment", ["queued", "prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_its_request(fake: Fake, *, moment: str, stream: bool) -> None:
    if moment == "queued":
        fake.engine.admits.clear()
    request = fake.post({"prompt": "a", "stream": stream})
    await until(lambda: fake.engine.streams if moment != "queued" else fake.engine.submitted)
    if moment == "decode":
        fake.engine.push("one")
        if stream:
            response = await request
            await response.content.readany()
            response.close()
    request.cancel()
    await until(lambda: fake.engine.aborted)
    assert len(fake.engine.aborted) == 1


async def test_a_client_that_leaves_before_its_stream_exists_is_logged_as_aborted(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="actorllm.requests")
    fake.engine.admits.clear()
    request = fake.post({"prompt": "a"})
    await until(lambda: fake.engine.submitted)
    request.cancel()
    await until(lambda: "status=499" in caplog.text)
    assert "finish=abort" in caplog.text


async def test_every_request_has_a_log_line_but_polls(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="actorllm.requests")
    for path in ("/v1/models", "/health", "/metrics", "/version", "/v1/nothing"):
        async with fake.client.get(fake.address + path):
            pass
    fake.engine.is_healthy = False
    async with fake.client.get(fake.address + "/health"):
        pass
    lines = [record.getMessage().split() for record in caplog.records if record.name == "actorllm.requests"]
    assert [(line[2], line[3]) for line in lines] == [
        ("/v1/models", "status=200"), ("/version", "status=200"), ("/v1/nothing", "status=404"), ("/health", "status=503"),
    ]  # fmt: skip


async def test_a_write_to_a_client_that_has_left_is_no_error_of_the_server(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def write(self: web.StreamResponse, data: bytes) -> None:
        raise ConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.StreamResponse, "write", write)
    caplog.set_level("INFO")
    request = fake.post({"prompt": "a", "stream": True})
    await until(lambda: fake.engine.streams)
    fake.engine.push("one")
    await until(lambda: fake.engine.aborted and "status=499" in caplog.text)
    request.cancel()
    assert "Traceback" not in caplog.text


async def test_every_prompt_of_a_request_is_aborted(fake: Fake) -> None:
    request = fake.post({"prompt": ["a", "b", "c"]})
    await until(lambda: len(fake.engine.streams) == 3)
    request.cancel()
    await until(lambda: len(fake.engine.aborted) == 3)
    assert sorted(fake.engine.aborted) == sorted(stream.request_id for stream in fake.engine.streams)


async def test_a_finished_request_is_not_aborted(fake: Fake) -> None:
    request = fake.post({"prompt": "a", "stream": True})
    await until(lambda: fake.engine.streams)
    fake.engine.push("one", finish="stop")
    await (await request).text()
    assert fake.engine.aborted == []


# --- failures ---


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status"), [(QueueTimeout("waited"), 503), (RequestTimeout("ran"), 504), (DeviceLost("gone"), 503)])
async def test_a_failure_before_the_first_token_is_the_status(fake: Fake, error: Any, status: int, *, stream: bool) -> None:
    request = fake.post({"prompt": "a", "stream": stream})
    await until(lambda: fake.engine.streams)
    fake.engine.fail(error)
    response = await request
    assert response.status == status
    assert (await response.json())["error"] | {"type": ""} == {
        "message": error.message,
        "type": "",
        "param": None,
        "code": type(error).__name__,
    }


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_failure_in_mid_stream_is_an_event_and_then_the_end(fake: Fake, path: str) -> None:
    request = fake.post({"prompt": "a", "messages": MESSAGES, "stream": True, "n": 2}, path)
    await until(lambda: fake.engine.streams)
    fake.engine.push("one")
    response = await request
    fake.engine.fail(RequestTimeout("too long"), choice=1)
    events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "RequestTimeout"
    assert fake.engine.aborted == [fake.engine.streams[0].request_id]  # the other choice does not go on alone


async def test_an_unexpected_exception_tells_nothing(fake: Fake, caplog) -> None:
    fake.engine.refusal = RuntimeError("boom at 0x7f0011223344 in /usr/lib/secret.py")
    status, answer = await fake.answer({"prompt": "a"})
    assert status == 500
    assert answer["error"]["type"] == "server_error"
    assert not re.search(r"0x|secret|boom|Traceback", json.dumps(answer))
    assert "boom" in caplog.text


async def test_an_unexpected_exception_in_mid_stream_is_an_event(fake: Fake, caplog) -> None:
    request = fake.post({"prompt": "a", "stream": True})
    await until(lambda: fake.engine.streams)
    fake.engine.push("one")
    response = await request
    fake.engine.push(object())  # no JSON can hold it
    text = await response.text()
    assert text.endswith("data: [DONE]\n\n")
    assert '"server_error"' in text and "0x" not in text
    assert len(fake.engine.aborted) == 1


async def test_a_full_queue_says_when_to_come_again(fake: Fake) -> None:
    fake.engine.refusal = QueueFull("full")
    response = await fake.post({"prompt": "a"})
    assert response.status == 429
    assert int(response.headers["Retry-After"]) >= 1


async def test_an_unhealthy_engine_shows(fake: Fake) -> None:
    for method in ("get", "post"):
        async with getattr(fake.client, method)(fake.address + "/health") as response:
            assert response.status == 200
    fake.engine.is_healthy = False
    async with fake.client.get(fake.address + "/health") as response:
        assert response.status == 503


# --- events and parameters ---


async def test_what_came_while_the_client_was_slow_comes_in_one_piece_and_in_order(fake: Fake) -> None:
    request = fake.post({"prompt": "a", "stream": True})
    await until(lambda: fake.engine.streams)
    for text in "abc":
        fake.engine.push(text)
    fake.engine.push("d", finish="length")
    events = (await (await request).text()).split("\n\n")[:-2]
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == "abcd"
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]


async def test_a_client_that_stops_reading_gets_all_in_order_later_and_no_more_than_a_little_is_kept_for_it_encoded(fake: Fake) -> None:
    request = fake.post({"prompt": "a", "stream": True})
    await until(lambda: fake.engine.streams)
    fake.engine.push("0 ")
    response = await request
    texts = [f"{number} " + "x" * 4000 for number in range(1, 4000)]
    for text in texts:
        fake.engine.push(text)
        await asyncio.sleep(0)
    assert fake.engine.streams[0]._events, "16 MB were encoded for a client that reads nothing"
    fake.engine.push("", finish="stop")
    events = (await response.text()).split("\n\n")[:-2]
    assert "".join(json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events) == "".join(["0 ", *texts])


async def test_an_http_1_0_client_is_streamed_to_without_chunks(fake: Fake) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(fake.address.rsplit(":", 1)[1]))
    body = b'{"prompt": "a", "stream": true}'
    head = b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    await until(lambda: fake.engine.streams)
    fake.engine.push("one")
    headers = await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"\n\n")
    fake.engine.push("two", finish="stop")
    rest = await reader.read()
    writer.close()
    assert b"chunked" not in headers
    [event, done] = rest.split(b"\n\n")[:-1]
    assert json.loads(event.removeprefix(b"data: "))["choices"][0]["text"] == "two"
    assert done == b"data: [DONE]"


async def test_each_chat_choice_begins_with_its_role(fake: Fake) -> None:
    request = fake.post({"messages": MESSAGES, "stream": True, "n": 2}, CHAT)
    await until(lambda: fake.engine.streams)
    fake.engine.push("one", choice=1)
    response = await request
    fake.engine.push("", choice=0, finish="stop")
    fake.engine.push("", choice=1, finish="length")
    events = (await response.text()).split("\n\n")[:-2]
    seen: dict[int, list[dict]] = {0: [], 1: []}
    for event in events:
        [choice] = json.loads(event.removeprefix("data: "))["choices"]
        seen[choice["index"]].append(choice)
    for choices in seen.values():
        assert ["role" in choice["delta"] for choice in choices] == [True] + [False] * (len(choices) - 1)
        assert [choice["finish_reason"] is not None for choice in choices] == [False] * (len(choices) - 1) + [True]


async def params_of(fake: Fake, body: dict, path: str = COMPLETIONS) -> Any:
    fake.engine.refusal = QueueFull("only the parameters are wanted")
    status, answer = await fake.answer({"prompt": "a", "messages": MESSAGES, **body}, path)
    assert status == 429, answer
    return fake.engine.submitted[-1]


async def test_the_request_wins_over_the_checkpoint_and_null_does_not(fake: Fake) -> None:
    _, params, timeout = await params_of(fake, {"temperature": 0.2, "top_k": None, "timeout": 3})
    assert (params.temperature, params.top_k, params.max_tokens, params.usual_tokens, timeout) == (0.2, 5, None, 16, 3.0)
    _, params, timeout = await params_of(fake, {"temperature": None, "max_tokens": 0})
    assert (params.temperature, params.max_tokens, timeout) == (0.7, 0, None)


async def test_chat_fills_the_context_unless_told(fake: Fake) -> None:
    assert (await params_of(fake, {}, CHAT))[1].max_tokens is None
    assert (await params_of(fake, {"max_tokens": 9}, CHAT))[1].max_tokens == 9
    assert (await params_of(fake, {"max_tokens": 9, "max_completion_tokens": 4}, CHAT))[1].max_tokens == 4
    assert (await params_of(fake, {"logprobs": True, "top_logprobs": 3}, CHAT))[1].logprobs == 3
    assert (await params_of(fake, {"logprobs": True}, CHAT))[1].logprobs == 0


async def test_template_options_travel(fake: Fake) -> None:
    body = {"continue_final_message": True, "chat_template_kwargs": {"thinking": False}}
    prompt = (await params_of(fake, body, CHAT))[0]
    assert prompt.continue_final_message and not prompt.add_generation_prompt
    assert prompt.template_kwargs == {"thinking": False}


async def test_an_alias_is_served(fake: Fake) -> None:
    await params_of(fake, {"model": "alias"})
    async with fake.client.get(fake.address + "/v1/models") as response:
        assert [card["id"] for card in (await response.json())["data"]] == ["fake", "alias"]


async def test_a_loop_that_is_held_up_shows_in_its_lag(fake: Fake) -> None:
    async def sum_and_longest() -> tuple[float, float]:
        async with fake.client.get(fake.address + "/metrics") as response:
            text = await response.text()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("actorllm_loop_lag_seconds"))
        count, below = (float(values[f"actorllm_loop_lag_seconds_{name}"]) for name in ("count", 'bucket{le="0.2"}'))
        return float(values["actorllm_loop_lag_seconds_sum"]), count - below

    await asyncio.sleep(0)  # the watch has begun to sleep
    before = await sum_and_longest()
    time.sleep(0.5)  # noqa: ASYNC251 (it is the loop that is held up)
    async with asyncio.timeout(10):
        while (after := await sum_and_longest())[1] == before[1]:  # noqa: ASYNC110 (a timer measures it)
            await asyncio.sleep(0.01)
    assert after[0] - before[0] > 0.2


async def test_metrics_have_the_names_of_dashboards(fake: Fake) -> None:
    names = [
        "num_requests_running", "num_requests_waiting", "prompt_tokens_total", "generation_tokens_total", "request_success_total",
        "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
        "kv_cache_usage_perc", "loop_lag_seconds", "pauses_total", "restarts_total", "steps_total",
    ]  # fmt: skip

    async def read() -> str:
        async with fake.client.get(fake.address + "/metrics") as response:
            return await response.text()

    async with asyncio.timeout(10):
        while "actorllm_loop_lag_seconds_count 0.0" in (text := await read()):  # noqa: ASYNC110 (a timer measures it)
            await asyncio.sleep(0.01)
    for name in names:
        assert f"# HELP actorllm_{name}" in text and f"# TYPE actorllm_{name}" in text
