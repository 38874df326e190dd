"""A real trained model with its keys and values in int8: near to float32, and the same ids however it is run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actorllm.engine import Engine
from actorllm.execution.model_plan import plan_model
from actorllm.layers.shard import Shard
from actorllm.messages import Step
from actorllm.models.loading import load_weights
from actorllm.settings import EngineSettings, ModelSettings
from actorllm.testing.tiny import logits_in_chunks
from actorllm.tokenizer.load import Tokenizer
from actorllm.weights.checkpoint import Checkpoint
from tests.engine.test_golden import greedy_ids, run_in_company
from tests.paused import lengths_when_resumed

SettingsFactory = Callable[..., EngineSettings]
STORIES = (
    "Once upon a time there was a small brown dog who lived by the sea. Every day he ran on the sand and looked for shells. One day he "
    "found a big red box. It was very heavy. He called his friend, the cat, and they pulled and pulled. When the box opened, a bird "
    "flew out and said thank you. The dog and the cat were happy, and the three of them played until the sun went down.",
    "Tom had a blue kite. The wind was strong and the kite went up, up, up. Then the string broke and Tom was sad. His mom said, do not "
    "cry, we can make a new one. They took paper and sticks and some glue, and they made a kite with a long tail. Tom gave it a name and "
    "ran back to the park to fly it with his sister.",
)


@pytest.mark.parametrize(("kept", "limit"), [(torch.int8, 1e-3), (torch.bfloat16, 1e-4)])
async def test_the_next_token_is_distributed_as_with_float32(stories_dir: Path, kept: torch.dtype, limit: float) -> None:
    plan = plan_model(stories_dir, EngineSettings(model=ModelSettings(path=str(stories_dir), dtype="float32")))
    model, tokenizer = plan.build(Shard()), Tokenizer.load(stories_dir)
    texts = [await tokenizer.encode(text) for text in STORIES]
    with Checkpoint.open(stories_dir) as checkpoint:
        load_weights(model, checkpoint)

    def log_shares(kv_dtype: torch.dtype | None) -> Tensor:
        return torch.cat([logits_in_chunks(model, ids, kv_dtype=kv_dtype) for ids in texts]).log_softmax(-1)

    exact, rounded = log_shares(None), log_shares(kept)
    divergence = (exact.exp() * (exact - rounded)).sum(dim=-1).mean()
    assert len(exact) > 150 and 0 < divergence < limit
    assert (exact.argmax(-1) == rounded.argmax(-1)).double().mean() > 0.99


async def test_ids_do_not_depend_on_chunks_company_pauses_depth_or_ranks(
    stories_settings: SettingsFactory, golden, *, steps: list[Step]
) -> None:
    async with Engine(stories_settings(kv_cache="int8")) as engine:
        expected = await greedy_ids(engine, golden)
        assert await run_in_company(engine, golden, num_others=4) == expected
    for changes in ({"max_step_tokens": 3}, {"tensor_parallel": 2}):
        async with Engine(stories_settings(kv_cache="int8", **changes)) as engine:
            assert await greedy_ids(engine, golden) == expected
    steps.clear()
    settings = stories_settings(kv_cache="int8", depth=2, admission="optimistic", kv_slots=520, max_step_tokens=64)
    async with Engine(settings) as engine:
        assert await run_in_company(engine, golden) == expected
        assert lengths_when_resumed(steps, expected), "the golden request was never paused"
