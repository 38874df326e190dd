"""The real model's published greedy text over HTTP: alone, among 16 others, at any depth, pausing, on two ranks."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.server.conftest import Served, serving

NUM_OTHERS = 16
CASES: dict[str, dict[str, Any]] = {
    "depth 1": {"depth": 1},
    "depth 2": {"depth": 2},
    "pausing": {"depth": 2, "admission": "optimistic", "kv_slots": 520, "max_step_tokens": 64},
    "two ranks": {"tensor_parallel": 2},
}


@pytest.mark.parametrize("case", CASES)
async def test_golden_text(stories_dir: Path, case: str) -> None:
    golden = msgspec.json.decode((stories_dir / "golden_greedy.json").read_bytes())
    prompt, ids = golden["prompt_ids"], golden["greedy_ids"]
    body = {"prompt": prompt, "temperature": 0, "max_tokens": len(ids) - len(prompt), "ignore_eos": True}

    async def golden_text(served: Served) -> str:
        status, answer = await served.post("/v1/completions", body)
        assert status == 200, answer
        return answer["choices"][0]["text"]

    async def other(served: Served, index: int) -> None:
        own = {"prompt": ids[: 3 + 7 * index], "max_tokens": 20 + 9 * index, "seed": index}
        status, answer = await served.post("/v1/completions", own)
        assert status == 200, answer

    async with serving(stories_dir, **CASES[case]) as served:
        expected = served.engine.tokenizer.decode(ids, skip_special_tokens=True)
        assert expected.strip() == golden["text"].strip()
        assert (await golden_text(served)).strip() == expected.strip()
        others = [asyncio.create_task(other(served, index)) for index in range(NUM_OTHERS)]
        assert (await golden_text(served)).strip() == expected.strip()
        await asyncio.gather(*others)
        statistics = served.engine.statistics()
        assert statistics.slots_in_use == (0,)
        assert (statistics.num_pauses > 0) == (case == "pausing")
