"""What a request may ask for, on the real model: choices, seeds, ends, limits, and logprobs against an independent model."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from actorllm.engine import Engine
from actorllm.errors import ActorLLMError, PromptTooLong, QueueFull, QueueTimeout, RequestTimeout
from actorllm.execution.runner import ResidentRunner
from actorllm.llm import LLM
from actorllm.messages import SamplingParams, TokenEvent
from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings
from actorllm.stream import RequestStream

SettingsFactory = Callable[..., EngineSettings]
GUARD = 30.0
GREEDY = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
TOLERANCE = 1e-3


async def read(stream: RequestStream) -> list[TokenEvent]:
    async with asyncio.timeout(GUARD):
        return [event async for events in stream for event in events]


async def run(engine: Engine, prompt: Any, params: SamplingParams) -> tuple[RequestStream, list[TokenEvent]]:
    stream = await engine.submit(prompt, params)
    return stream, await read(stream)


def changed(params: SamplingParams, **changes: Any) -> SamplingParams:
    return msgspec.structs.replace(params, **changes)


def joined(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


async def slots_are_back(engine: Engine) -> None:
    async with asyncio.timeout(GUARD):
        while engine.statistics().slots_in_use != (0,):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def ends_with(stream: RequestStream) -> ActorLLMError:
    """The error that ends the stream, once."""
    events = await read(stream)
    assert [event.finish for event in events if event.finish] == ["error"]
    assert events[-1].failure is not None
    return events[-1].failure.error()


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes 10 ms at least, so that a long request surely runs while others come and go."""
    forward = ResidentRunner.forward

    def forward_slowly(runner: ResidentRunner, step: Any) -> Any:
        time.sleep(0.01)
        return forward(runner, step)

    monkeypatch.setattr(ResidentRunner, "forward", forward_slowly)


# --- choices and seeds ---


async def test_choices_share_the_slots_of_their_prompt(stories_settings: SettingsFactory, golden) -> None:
    prompt, params = golden.greedy_ids[:200], SamplingParams(n=8, max_tokens=16, seed=3, ignore_eos=True)
    async with Engine(stories_settings()) as engine:
        stream = await engine.submit(prompt, params)
        peak = 0
        async for _ in stream:
            peak = max(peak, engine.statistics().slots_in_use[0])
        assert 200 < peak <= 200 + 8 * 17
        assert stream.num_output_tokens == 8 * 16
        await slots_are_back(engine)


async def test_seeds_repeat_alone_and_in_company(stories_settings: SettingsFactory, golden) -> None:
    params = SamplingParams(n=4, seed=11, max_tokens=24, ignore_eos=True)
    async with Engine(stories_settings()) as engine:
        texts = await engine.complete(golden.prompt_ids, params)
        assert len(set(texts)) == 4
        others = [
            asyncio.create_task(engine.complete(golden.greedy_ids[: 5 + 9 * index], SamplingParams(max_tokens=30)))
            for index in range(8)
        ]
        assert await engine.complete(golden.prompt_ids, params) == texts
        for choice, text in enumerate(texts):
            alone = changed(params, n=1, seed=11 + choice)
            assert await engine.complete(golden.prompt_ids, alone) == [text]
        await asyncio.gather(*others)
        unseeded = changed(params, n=1, seed=None)
        again = [await engine.complete(golden.prompt_ids, unseeded) for _ in range(6)]
        assert len({text for [text] in again}) > 1, "two short stories may well be the same, six are not"


async def test_greedy_choices_are_equal(stories_settings: SettingsFactory, golden) -> None:
    async with Engine(stories_settings()) as engine:
        [first, second] = await engine.complete(golden.prompt_ids, changed(GREEDY, n=2))
        assert first == second == (await engine.complete(golden.prompt_ids, GREEDY))[0]


# --- deadlines and limits ---


async def test_deadlines(stories_settings: SettingsFactory, golden, slow_steps: None) -> None:
    long = changed(GREEDY, max_tokens=400)
    async with Engine(stories_settings(max_running=1)) as engine:
        running = await engine.submit(golden.prompt_ids, long, timeout=1.0)
        await anext(running)
        waiting = await engine.submit(golden.prompt_ids, long, wait_timeout=0.1)
        assert isinstance(await ends_with(waiting), QueueTimeout)
        assert isinstance(await ends_with(running), RequestTimeout)
        await slots_are_back(engine)
        assert len(await engine.complete(golden.prompt_ids, GREEDY)) == 1


async def test_a_full_queue_refuses(stories_settings: SettingsFactory, golden, slow_steps: None) -> None:
    async with Engine(stories_settings(max_running=1, max_waiting=2)) as engine:
        running = await engine.submit(golden.prompt_ids, changed(GREEDY, max_tokens=400))
        await anext(running)
        waiting = [await engine.submit(golden.prompt_ids, GREEDY) for _ in range(2)]
        with pytest.raises(QueueFull) as refusal:
            await engine.submit(golden.prompt_ids, GREEDY)
        assert refusal.value.status == 429
        running.abort()
        assert {joined(await read(stream)) for stream in waiting} == {(await engine.complete(golden.prompt_ids, GREEDY))[0]}


async def test_the_context_is_the_limit(stories_settings: SettingsFactory, golden) -> None:
    ids = (golden.greedy_ids * 4)[:600]
    async with Engine(stories_settings()) as engine:
        context = engine.info.context_len
        with pytest.raises(PromptTooLong):
            await engine.submit(ids, GREEDY)
        _, events = await run(engine, ids[: context - 3], changed(GREEDY, max_tokens=None))
        assert [event.finish for event in events] == [None, None, "length"]
        _, events = await run(engine, ids[:10], changed(GREEDY, max_tokens=0))
        assert [(event.token_id, event.finish) for event in events] == [(-1, "length")]


async def test_aborting_frees_the_slots(stories_settings: SettingsFactory, golden, slow_steps: None) -> None:
    async with Engine(stories_settings()) as engine:
        stream = await engine.submit(golden.prompt_ids, changed(GREEDY, n=2, max_tokens=400))
        await anext(stream)
        assert engine.statistics().slots_in_use > (0,)
        stream.abort()
        stream.abort()
        events = await read(stream)
        assert sorted((event.choice, event.finish) for event in events if event.finish) == [(0, "abort"), (1, "abort")]
        await slots_are_back(engine)


# --- ends ---


async def test_stop_strings_end_exactly(stories_settings: SettingsFactory, golden) -> None:
    async with Engine(stories_settings()) as engine:
        _, events = await run(engine, golden.prompt_ids, GREEDY)
        text = joined(events)
        for start, length in ((20, 1), (31, 6), (60, 9)):
            stop = text[start : start + length]
            ends = [len(joined(events[: number + 1])) for number in range(len(events))]
            cut = text.index(stop)
            num_tokens = next(number + 1 for number, end in enumerate(ends) if end >= cut + len(stop))
            stream, stopped = await run(engine, golden.prompt_ids, changed(GREEDY, stop=("not there", stop)))
            assert joined(stopped) == text[:cut]
            assert stopped[-1].finish == "stop"
            assert stream.num_output_tokens == num_tokens
            assert [event.index for event in stopped] == list(range(len(stopped)))
        await slots_are_back(engine)


async def test_stop_ids_and_min_tokens(stories_settings: SettingsFactory, golden) -> None:
    async with Engine(stories_settings()) as engine:
        stop_id = golden.output_ids[6]
        first = golden.output_ids.index(stop_id)
        stop_at = changed(GREEDY, stop_token_ids=(stop_id,))
        stream, events = await run(engine, golden.prompt_ids, stop_at)
        assert (events[-1].finish, events[-1].token_id, events[-1].text) == ("stop", stop_id, "")
        assert stream.num_output_tokens == first + 1
        stream, events = await run(engine, golden.prompt_ids, changed(stop_at, min_tokens=30))
        assert stop_id not in [event.token_id for event in events[:30]]
        assert stream.num_output_tokens >= 30


# --- the distribution ---


@pytest.fixture(scope="module")
def reference(stories_dir: Path) -> Any:
    """The same checkpoint in another implementation."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(stories_dir, dtype=torch.float32).eval()


@torch.no_grad()
def log_probabilities(reference: Any, ids: list[int]) -> torch.Tensor:
    """[T, V]: row t is the distribution of token t + 1."""
    return reference(torch.tensor([ids])).logits[0].log_softmax(-1)


def check_entry(row_V: torch.Tensor, token_id: int, *, own: Any, top: Any, width: int) -> None:
    """One position's logprobs are the reference's: the token's own and the best, in order."""
    assert own.token_id == token_id
    assert own.logprob == pytest.approx(row_V[token_id].item(), abs=TOLERANCE)
    best = row_V.topk(width).values
    assert [entry.logprob for entry in top] == pytest.approx(best.tolist(), abs=TOLERANCE)
    for entry in top:
        assert entry.logprob == pytest.approx(row_V[entry.token_id].item(), abs=TOLERANCE)


async def test_logprobs_are_the_models(stories_settings: SettingsFactory, golden, reference: Any) -> None:
    prompt = golden.greedy_ids[:150]
    params = SamplingParams(temperature=1.3, top_k=20, seed=5, max_tokens=20, logprobs=4, prompt_logprobs=3, ignore_eos=True)
    async with Engine(stories_settings(max_step_tokens=64)) as engine:
        company = asyncio.create_task(engine.complete(golden.prompt_ids, GREEDY))
        stream, events = await run(engine, prompt, params)
        await company
    ids = [event.token_id for event in events]
    rows_TV = log_probabilities(reference, prompt + ids)
    for number, event in enumerate(events):
        check_entry(rows_TV[len(prompt) + number - 1], event.token_id, own=event.logprob, top=event.top_logprobs, width=4)
    assert stream.prompt_event is not None
    entries = stream.prompt_event.logprobs
    assert len(entries) == len(prompt)
    assert entries[0] is None
    for number, entry in enumerate(entries[1:], 1):
        assert entry is not None
        check_entry(rows_TV[number - 1], prompt[number], own=entry[0], top=entry[1], width=3)


@pytest.fixture
def padded_dir(stories_dir: Path, tmp_path: Path) -> Path:
    """The model with 128 more rows of vocabulary, which score as real tokens do but stand for none."""
    padded = tmp_path / "padded"
    shutil.copytree(stories_dir, padded)
    config = json.loads((padded / "config.json").read_text())
    tensors = load_file(padded / "model.safetensors")
    name = "model.embed_tokens.weight"
    num_real = len(tensors[name])
    tensors[name] = torch.cat((tensors[name], tensors[name][num_real - 128 :]))
    save_file(tensors, padded / "model.safetensors", metadata={"format": "pt"})
    (padded / "config.json").write_text(json.dumps({**config, "vocab_size": num_real + 128}))
    return padded


async def test_padded_ids_are_never_sampled(stories_settings: SettingsFactory, golden, padded_dir: Path) -> None:
    settings = stories_settings()
    settings = msgspec.structs.replace(settings, model=msgspec.structs.replace(settings.model, path=str(padded_dir)))
    hot = SamplingParams(temperature=100.0, n=16, seed=0, max_tokens=100, ignore_eos=True)
    async with Engine(settings) as engine:
        assert engine.info.vocab_size == 640
        _, events = await run(engine, golden.prompt_ids, hot)
        ids = [event.token_id for event in events]
        assert len(ids) == 1600
        assert max(ids) < 512
        assert len(set(ids)) > 400
        _, events = await run(engine, golden.prompt_ids, GREEDY)
        assert [event.token_id for event in events] == golden.output_ids[: len(events)]


# --- for scripts ---


def test_a_script_generates(stories_settings: SettingsFactory, golden) -> None:
    params = changed(GREEDY, max_tokens=12)
    with LLM(settings=stories_settings()) as llm:
        [one] = llm.generate(golden.prompt_ids, params)
        assert llm.generate([golden.prompt_ids, golden.prompt_ids], params) == [one, one]
        assert llm.generate("Once upon a time", params) == llm.generate(["Once upon a time"], params)
        assert len(llm.generate(["Once", "The sea"], changed(params, n=2))) == 4
    llm.close()
    assert golden.text.strip().startswith(one.strip())


def test_a_script_names_its_model(stories_dir: Path) -> None:
    with LLM(str(stories_dir)) as llm:
        assert len(llm.generate(["Once upon a time"], SamplingParams(max_tokens=4))) == 1


async def test_end_tokens_outside_of_the_vocabulary_end_nothing_and_harm_nobody(
    stories_dir: Path, tmp_path: Path, golden, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories_dir, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 999999, 3000000000]}')
    settings = EngineSettings(model=ModelSettings(path=str(folder)), execution=ExecutionSettings(kv_slots=1024, threads=1))
    async with Engine(settings) as engine:
        stream = await engine.submit(golden.prompt_ids, SamplingParams(temperature=0.0, max_tokens=16, min_tokens=4))
        ids = [event.token_id async for events in stream for event in events]
    assert ids[:16] == golden.output_ids[:16]
    assert "only [2] are in the vocabulary" in caplog.text
