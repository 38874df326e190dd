"""A real trained model gives its published greedy text: alone, in company, pausing, at any depth, on two ranks."""

from collections.abc import Callable

import pytest

from actorllm.engine import Engine
from actorllm.messages import SamplingParams, Step, TokenEvent
from actorllm.settings import EngineSettings
from tests.paused import lengths_when_resumed

SettingsFactory = Callable[..., EngineSettings]


async def collect(engine: Engine, prompt: list[int], params: SamplingParams) -> list[TokenEvent]:
    return [event async for event in engine.generate(prompt, params)]


async def greedy_ids(engine: Engine, golden) -> list[int]:
    params = SamplingParams(temperature=0.0, max_tokens=len(golden.output_ids), ignore_eos=True)
    events = await collect(engine, golden.prompt_ids, params)
    assert [event.finish for event in events if event.finish] == ["length"]
    return [event.token_id for event in events if event.token_id >= 0]


async def run_in_company(engine: Engine, golden, num_others: int = 16) -> list[int]:
    """The golden request behind others of mixed lengths that sample at random: the first that a full pool pauses."""
    others = [
        await engine.submit(
            golden.greedy_ids[: 3 + 7 * index], SamplingParams(max_tokens=20 + 9 * index, seed=index, ignore_eos=True)
        )
        for index in range(num_others)
    ]
    ids = await greedy_ids(engine, golden)
    for index, stream in enumerate(others):
        events = [event async for batch in stream for event in batch]
        assert [event.finish for event in events if event.finish] == ["length"]
        assert sum(event.token_id >= 0 for event in events) == 20 + 9 * index
    return ids


@pytest.mark.parametrize("encode", [True, False], ids=["encoded", "plain"])
@pytest.mark.parametrize("depth", [1, 2])
async def test_alone_and_in_company(stories_settings: SettingsFactory, golden, *, depth: int, encode: bool) -> None:
    async with Engine(stories_settings(depth=depth, encode=encode)) as engine:
        assert await greedy_ids(engine, golden) == golden.output_ids
        assert await run_in_company(engine, golden) == golden.output_ids
        assert engine.statistics().slots_in_use == (0,)


@pytest.mark.parametrize("depth", [1, 2])
async def test_a_pool_so_small_that_requests_pause(
    stories_settings: SettingsFactory, golden, *, steps: list[Step], depth: int
) -> None:
    settings = stories_settings(depth=depth, admission="optimistic", kv_slots=520, max_step_tokens=64)
    async with Engine(settings) as engine:
        assert await run_in_company(engine, golden) == golden.output_ids
        resumed_at = lengths_when_resumed(steps, golden.output_ids)
        assert resumed_at, "the golden request was never paused"
        assert engine.statistics().num_pauses >= len(resumed_at)
        assert engine.statistics().slots_in_use == (0,)


async def test_two_thread_ranks(stories_settings: SettingsFactory, golden) -> None:
    async with Engine(stories_settings(tensor_parallel=2)) as engine:
        assert await run_in_company(engine, golden, num_others=4) == golden.output_ids


async def test_the_text_is_the_published_text(stories_settings: SettingsFactory, golden) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=len(golden.output_ids), ignore_eos=True)
    async with Engine(stories_settings()) as engine:
        [text] = await engine.complete(golden.prompt_ids, params)
    assert text == golden.text
