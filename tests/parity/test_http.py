"""Greedy tokens over HTTP equal the reference's wherever its two best logits are clearly apart.

One request alone, then 16 at once: prefilled in chunks beside those that decode, and paused now and then because the cache is
too small for all of them. On one rank and on two.
"""

import asyncio
from pathlib import Path

import aiohttp
import torch

from actorllm.cache.sizing import slots_needed
from actorllm.engine import Engine
from actorllm.execution.model_plan import plan_model
from actorllm.layers.shard import Shard
from actorllm.server.app import create_app, start_site
from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings, SchedulingSettings, ServerSettings
from actorllm.testing.reference import reference_logits
from tests.parity.families.case import CONTEXT

NUM_REQUESTS = 16
MOST_TRIES = 5
STEP_TOKENS = 24
CLEARLY = 1e-3
"""How far apart the two best logits must be to decide, as a part of the logits' spread."""


async def complete(client: aiohttp.ClientSession, address: str, prompt: list[int], num_tokens: int) -> list[int]:
    """The greedy output's ids: the tokenizer's words are `w<id>`."""
    body = {"prompt": prompt, "temperature": 0, "max_tokens": num_tokens, "ignore_eos": True, "logprobs": 0}
    async with client.post(address + "/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        [choice] = (await response.json())["choices"]
    return [int(token.strip().removeprefix("w")) for token in choice["logprobs"]["tokens"]]


def context_and_few_slots(directory: Path) -> tuple[int, int]:
    """The longest sequence, and slots in the cache for it and not for many."""
    plan = plan_model(directory, EngineSettings())
    context = min(plan.context, CONTEXT)
    return context, max(slots_needed(context, group.window, STEP_TOKENS) for group in plan.build(Shard()).cache_groups)


async def test_greedy_tokens_over_http(parity_case, num_ranks, figure) -> None:
    context, num_slots = context_and_few_slots(parity_case.directory)
    settings = EngineSettings(
        model=ModelSettings(path=str(parity_case.directory), context=context),
        execution=ExecutionSettings(threads=1, kv_slots=num_slots, tensor_parallel=num_ranks),
        scheduling=SchedulingSettings(max_step_tokens=STEP_TOKENS, depth=2, admission="optimistic"),
    )
    async with Engine(settings) as engine:
        generator = torch.Generator().manual_seed(3)
        lens = [1 + index // 4 if index % 2 else (index * 5) % (context - 8) + 1 for index in range(NUM_REQUESTS)]
        prompts = [torch.randint(parity_case.vocab_size, (length,), generator=generator).tolist() for length in lens]
        server = ServerSettings(port=0)
        runner, address = await start_site(create_app(engine, server), server)
        try:
            async with aiohttp.ClientSession() as client:
                for _ in range(MOST_TRIES):  # on a busy machine requests may come one after the other, and none has to pause
                    requests = [complete(client, address, prompt, min(12, context - len(prompt))) for prompt in [prompts[-1], *prompts]]
                    outputs = [await requests[0], *await asyncio.gather(*requests[1:])]
                    if engine.statistics().num_pauses:
                        break
        finally:
            await runner.cleanup()
        num_pauses = engine.statistics().num_pauses
        assert num_pauses > 0
    prompts.insert(0, prompts[-1])
    num_decided = sum(check(parity_case, prompt, output) for prompt, output in zip(prompts, outputs, strict=True))
    figure("tokens", sum(map(len, outputs)))
    figure("clear tokens", num_decided)
    figure("pauses", num_pauses)
    assert num_decided > 8 * NUM_REQUESTS  # the comparison means something


def check(parity_case, prompt: list[int], output: list[int]) -> int:
    """Compare every token of the output; returns how many of the reference's choices were clear."""
    ids = prompt + output
    logits_TV = reference_logits(parity_case.model, ids, one_by_one_from=parity_case.one_by_one_from)[len(prompt) - 1 : -1]
    num_clear = 0
    for token_id, logits_V in zip(output, logits_TV, strict=True):
        best = logits_V.topk(2)
        if best.values[0] - best.values[1] > CLEARLY * logits_TV.std():
            num_clear += 1
            assert token_id == best.indices[0], (len(prompt), token_id)
    return num_clear
