"""A real trained model gives its published greedy text: alone, in company, pausing, at any depth, on two ranks."""

import asyncio
from collections.abc import Callable

import pytest

from actorllm.engine import Engine
from actorllm.messages import SamplingParams, TokenEvent
from actorllm.settings import EngineSettings

SettingsFactory = Callable[..., EngineSettings]


async def collect(engine: Engine, prompt: list[int], params: SamplingParams) -> list[TokenEvent]:
    return [event async for event in engine.generate(prompt, params)]


async def greedy_ids(engine: Engine, golden) -> list[int]:
    params = SamplingParams(temperature=0.0, max_tokens=len(golden.output_ids), ignore_eos=True)
    events = await collect(engine, golden.prompt_ids, params)
    assert [event.finish for event in events if event.finish] == ["length"]
    return [event.token_id for event in events if event.token_id >= 0]


async def run_in_company(engine: Engine, golden, num_others: int = 16) -> list[int]:
    """The golden request among others of mixed lengths that sample at random."""
    others = [
        asyncio.create_task(
            collect(engine, golden.greedy_ids[: 3 + 7 * index], SamplingParams(max_tokens=20 + 9 * index, seed=index))
        )
        for index in range(num_others)
    ]
    ids = await greedy_ids(engine, golden)
    for events in await asyncio.gather(*others):
        assert sum(event.finish is not None for event in events) == 1
    return ids


@pytest.mark.parametrize("encode", [True, False], ids=["encoded", "plain"])
@pytest.mark.parametrize("depth", [1, 2])
async def test_alone_and_in_company(stories_settings: SettingsFactory, golden, *, depth: int, encode: bool) -> None:
    async with Engine(stories_settings(depth=depth, encode=encode)) as engine:
        assert await greedy_ids(engine, golden) == golden.output_ids
        assert await run_in_company(engine, golden) == golden.output_ids
        assert engine.statistics().slots_in_use == (0,)


@pytest.mark.parametrize("depth", [1, 2])
async def test_a_pool_so_small_that_requests_pause(stories_settings: SettingsFactory, golden, depth: int) -> None:
    settings = stories_settings(depth=depth, admission="optimistic", kv_slots=520, max_step_tokens=64)
    async with Engine(settings) as engine:
        assert await run_in_company(engine, golden) == golden.output_ids
        assert engine.statistics().num_pauses > 0
        assert engine.statistics().slots_in_use == (0,)


async def test_two_thread_ranks(stories_settings: SettingsFactory, golden) -> None:
    async with Engine(stories_settings(tensor_parallel=2)) as engine:
        assert await run_in_company(engine, golden, num_others=4) == golden.output_ids


async def test_the_text_is_the_published_text(stories_settings: SettingsFactory, golden) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=len(golden.output_ids), ignore_eos=True)
    async with Engine(stories_settings()) as engine:
        [text] = await engine.complete(golden.prompt_ids, params)
    assert golden.text.strip().startswith(text.strip()) or text.strip().startswith(golden.text.strip())
