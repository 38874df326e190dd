"""The routes around generation, and clients that leave."""

import asyncio
import json

import aiohttp
import pytest

from actorllm.cli.main import main
from tests.server.conftest import Served


async def test_models_health_version_metrics(stories) -> None:
    _, models = await stories.get("/v1/models")
    card = models["data"][0]
    assert card["id"] == "stories260K" and card["max_model_len"] == 512
    assert (await stories.get("/v1/models/stories260K"))[1] == card
    assert (await stories.get("/v1/models/other"))[0] == 404
    assert (await stories.get("/health"))[0] == 200
    assert "version" in (await stories.get("/version"))[1]


async def test_counters_equal_the_sums_over_requests(stories) -> None:
    usages = [
        (await stories.post("/v1/completions", {"prompt": "Once", "max_tokens": size}))[1]["usage"] for size in (3, 5)
    ]
    async with stories.client.get(stories.address + "/metrics") as response:
        lines = (await response.text()).splitlines()
    values = {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
    assert values["actorllm_generation_tokens_total"] == sum(usage["completion_tokens"] for usage in usages)
    assert values["actorllm_prompt_tokens_total"] == sum(usage["prompt_tokens"] for usage in usages)
    assert sum(value for name, value in values.items() if name.startswith("actorllm_request_success_total")) == 2
    assert values["actorllm_time_to_first_token_seconds_count"] == 2
    assert values["actorllm_request_queue_time_seconds_count"] == 2
    assert values["actorllm_kv_cache_usage_perc"] == 0


async def test_tokenize_and_detokenize_are_inverse(stories) -> None:
    _, tokens = await stories.post("/tokenize", {"prompt": "Once upon a time"})
    assert tokens["count"] == len(tokens["tokens"])
    _, text = await stories.post("/detokenize", {"tokens": tokens["tokens"]})
    assert "Once upon a time" in text["prompt"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_slots(stories, *, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "actorllm.requests")
    body = {"prompt": "Once", "max_tokens": 480, "ignore_eos": True, "stream": stream}
    async with aiohttp.ClientSession() as client:
        request = asyncio.ensure_future(client.post(stories.address + "/v1/completions", json=body))
        await _until(lambda: stories.engine.statistics().num_running == 1)
        if stream:
            response = await request
            await response.content.readany()
            response.close()
        else:
            request.cancel()
    await _until(lambda: stories.engine.statistics().slots_in_use == (0,))
    assert stories.engine.statistics().num_ended["abort"] == 1
    await _until(lambda: "finish=" in caplog.text)
    assert "finish=abort" in caplog.text
    async with stories.client.get(stories.address + "/metrics") as response:
        lines = (await response.text()).splitlines()
    assert [line for line in lines if line.startswith("actorllm_request_success_total{")] == [
        'actorllm_request_success_total{finished_reason="abort"} 1.0'
    ]


async def test_one_log_line_a_request_without_the_prompt(stories, caplog) -> None:
    caplog.set_level("INFO", logger="actorllm.requests")
    await stories.post("/v1/completions", {"prompt": "a secret", "max_tokens": 2})
    lines = [record.getMessage() for record in caplog.records if record.name == "actorllm.requests"]
    assert len(lines) == 1
    assert "status=200" in lines[0] and "output_tokens=2" in lines[0] and "secret" not in lines[0]


async def test_streamed_events_are_json_objects_one_a_token(stories) -> None:
    body = {"prompt": "Once", "max_tokens": 10, "stream": True, "ignore_eos": True}
    async with stories.client.post(stories.address + "/v1/completions", json=body) as response:
        lines = (await response.text()).split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]
    assert len(chunks) == 10


async def _until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a server's gauge has no event to wait for
            await asyncio.sleep(0.01)


async def test_plugins_are_listed_as_on_the_command_line(echo: Served, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = await echo.get("/v1/plugins")
    main(["plugin", "list", "--json"])
    assert status == 200
    assert answer == {"object": "list", "data": json.loads(capsys.readouterr().out)}
    row = next(row for row in answer["data"] if row["architecture"] == "EchoForCausalLM")
    assert (row["distribution"], row["contract"], row["state"]) == ("actorllm-echo", 1, "ready")
