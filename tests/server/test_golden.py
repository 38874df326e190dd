"""The real model's published greedy text over HTTP: alone, among 16 others, at any depth, pausing, on two ranks."""

from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from actorllm.messages import Step
from tests.paused import lengths_when_resumed
from tests.server.conftest import Served, serving

NUM_OTHERS = 16
CASES: dict[str, dict[str, Any]] = {
    "depth 1": {"depth": 1},
    "depth 2": {"depth": 2},
    "pausing": {"depth": 2, "admission": "optimistic", "kv_slots": 520, "max_step_tokens": 64},
    "two ranks": {"tensor_parallel": 2},
}


@pytest.mark.parametrize("case", CASES)
async def test_golden_text(stories_dir: Path, steps: list[Step], case: str) -> None:
    golden = msgspec.json.decode((stories_dir / "golden_greedy.json").read_bytes())
    prompt, ids = golden["prompt_ids"], golden["greedy_ids"]
    body = {"prompt": prompt, "temperature": 0, "max_tokens": len(ids) - len(prompt), "ignore_eos": True}

    async def golden_text(served: Served) -> str:
        status, answer = await served.post("/v1/completions", body)
        assert status == 200, answer
        return answer["choices"][0]["text"]

    async def begin_other(served: Served, index: int) -> aiohttp.ClientResponse:
        """Returns once the headers are here, so that the request lies before all that are sent later."""
        own = {"prompt": ids[: 3 + 7 * index], "max_tokens": 100 + 9 * index, "seed": index, "ignore_eos": True, "stream": True}
        response = await served.client.post(served.address + "/v1/completions", json=own)
        assert response.status == 200
        return response

    async with serving(stories_dir, **CASES[case]) as served:
        assert await golden_text(served) == golden["text"]
        others = [await begin_other(served, index) for index in range(NUM_OTHERS)]
        assert await golden_text(served) == golden["text"]
        for response in others:
            assert (await response.text()).endswith("data: [DONE]\n\n")
        statistics = served.engine.statistics()
        assert statistics.slots_in_use == (0,)
        assert (statistics.num_pauses > 0) == (case == "pausing")
        assert bool(lengths_when_resumed(steps, ids[len(prompt) :])) == (case == "pausing")
