"""Batches are flat: a ragged step mixes prefill and decode rows and holds no tensor of rows x longest.

Legend: R rows of the step, L the longest row's tokens, T all tokens.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from actorllm.engine import Engine
from actorllm.execution.devices import Devices
from actorllm.execution.runner import Forwarded, Launched, ResidentRunner
from actorllm.messages import SamplingParams, Step, unpack
from actorllm.settings import EngineSettings

SettingsFactory = Callable[..., EngineSettings]
NUM_DECODING = 12  # with the prefill row 13: the model has no axis of either size
PREFILL_LEN = 200


class ShapeRecorder(TorchDispatchMode):
    """Remembers the shape of every tensor that an operator reads or makes, with the operator's name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, tuple[int, ...]]] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                self.seen.add((str(operator), tuple(leaf.shape)))
        return result


def is_padded(shape: tuple[int, ...], num_rows: int, longest: int, *, vocab_size: int = 512) -> bool:
    """Whether the tensor could hold `num_rows` rows at the longest one's length or more, as two axes or as one.

    One logit per row and vocabulary entry is no padding.
    """
    if num_rows * longest in shape:
        return True
    if num_rows not in shape:
        return False
    others = list(shape)
    others.remove(num_rows)
    return any(size >= longest and size != vocab_size for size in others)


def is_ragged(step: Step) -> bool:
    query_lens = unpack(step.query_lens)
    return max(query_lens) == PREFILL_LEN and list(query_lens).count(1) == NUM_DECODING


async def run_ragged(engine: Engine, golden) -> None:
    """Some requests of mixed lengths decode; a long prompt joins them. Each is in a namespace of its own, so all is computed."""
    params = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
    prompts = [golden.greedy_ids[: 3 + 11 * number] for number in range(NUM_DECODING)]
    streams = [await engine.submit(prompt, params, namespace=str(len(prompt))) for prompt in prompts]
    for stream in streams:
        await anext(stream)
    async with await engine.submit(golden.greedy_ids[:PREFILL_LEN], params, namespace="late") as late:
        await anext(late)
    for stream in streams:
        stream.abort()


@pytest.mark.parametrize("depth", [1, 2])
async def test_steps_hold_prefill_and_decode_rows_together(
    stories_settings: SettingsFactory, golden, *, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    steps: list[Step] = []
    run = Devices.run
    monkeypatch.setattr(Devices, "run", lambda devices, step, deliver: (steps.append(step), run(devices, step, deliver)))
    async with Engine(stories_settings(depth=depth)) as engine, asyncio.timeout(30):
        await run_ragged(engine, golden)
    assert any(is_ragged(step) for step in steps)
    for step in steps:
        assert sum(unpack(step.query_lens)) == len(unpack(step.token_ids)) == len(unpack(step.positions))


async def test_no_tensor_of_a_ragged_step_is_rows_by_longest(
    stories_settings: SettingsFactory, golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_steps: list[tuple[Step, set[tuple[str, tuple[int, ...]]]]] = []
    forward, sample = ResidentRunner.forward, ResidentRunner.sample

    def recorded_forward(runner: ResidentRunner, step: Step) -> Forwarded:
        if not is_ragged(step):
            return forward(runner, step)
        with ShapeRecorder() as recorder:
            recorded_steps.append((step, recorder.seen))
            return forward(runner, step)

    def recorded_sample(runner: ResidentRunner, forwarded: Forwarded) -> Launched:
        if not is_ragged(forwarded.step):
            return sample(runner, forwarded)
        with ShapeRecorder() as recorder:
            recorded_steps.append((forwarded.step, recorder.seen))
            return sample(runner, forwarded)

    monkeypatch.setattr(ResidentRunner, "forward", recorded_forward)
    monkeypatch.setattr(ResidentRunner, "sample", recorded_sample)
    settings = stories_settings()
    settings = msgspec.structs.replace(settings, model=msgspec.structs.replace(settings.model, context=400))
    async with Engine(settings) as engine, asyncio.timeout(30):
        await run_ragged(engine, golden)
    [(step, seen), (_, seen_sampling)] = recorded_steps
    seen |= seen_sampling
    contexts = sorted(unpack(step.seq_lens))
    longest_decoding = contexts[-2]
    assert contexts[-1] == PREFILL_LEN
    assert 100 < longest_decoding < PREFILL_LEN
    assert any(NUM_DECODING + PREFILL_LEN in shape for _, shape in seen), "the hook saw the flat batch"
    for num_rows, longest in ((NUM_DECODING + 1, PREFILL_LEN), (NUM_DECODING, longest_decoding)):
        assert sorted(entry for entry in seen if is_padded(entry[1], num_rows, longest)) == []


def test_the_criterion_knows_a_padded_batch() -> None:
    assert is_padded((13, 200, 64), 13, 200)
    assert is_padded((13, 4, 208), 13, 200)
    assert is_padded((2600, 64), 13, 200)
    assert not is_padded((212, 8, 8), 13, 200)
    assert not is_padded((13, 512), 13, 200)
