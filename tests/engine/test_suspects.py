"""A request whose steps crash, beside 32 that are well."""

import asyncio
from typing import Any

import pytest

from actorllm.errors import RequestFailed
from actorllm.execution.runner import ResidentRunner
from actorllm.messages import Step, unpack
from tests.engine.test_no_hang import GUARD, Reading, SettingsFactory, read, running, texts

__all__ = ["texts"]  # a fixture


@pytest.mark.parametrize("num_good_tokens", [0, 1, 6])
@pytest.mark.parametrize("depth", [1, 2])
async def test_a_request_whose_steps_crash_fails_alone(
    stories_settings: SettingsFactory,
    golden,
    *,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    num_good_tokens: int,
    depth: int,
) -> None:
    """Every step that computes it beyond some length raises, whatever else is in the step."""
    poison, forward, poisoned = [7, 7, 7], ResidentRunner.forward, set[int]()

    def forward_or_raise(runner: ResidentRunner, step: Step) -> Any:
        start = 0
        for row, query_len, seq_len in zip(unpack(step.rows), unpack(step.query_lens), unpack(step.seq_lens), strict=True):
            if list(unpack(step.token_ids)[start : start + len(poison)]) == poison:
                poisoned.add(row)
            elif query_len == seq_len:
                poisoned.discard(row)
            if row in poisoned and seq_len >= len(poison) + num_good_tokens:
                raise RuntimeError("a row that no kernel can compute")
            start += query_len
        return forward(runner, step)

    async with running(stories_settings(depth=depth), golden) as streams, asyncio.timeout(GUARD):
        monkeypatch.setattr(ResidentRunner, "forward", forward_or_raise)
        poisonous = await read(streams.engine, -1, prompt=poison, reading=Reading())
        assert poisonous.ends == ["error"]
        assert isinstance(poisonous.error, RequestFailed)
        assert len(poisonous.token_ids) == num_good_tokens
        readings = await streams.ends()
        assert [(reading.ends, reading.text) for reading in readings] == [(["length"], text) for text in texts]
        assert streams.engine.is_healthy
        assert streams.engine.statistics().num_restarts == 4  # schedule and execute, twice
