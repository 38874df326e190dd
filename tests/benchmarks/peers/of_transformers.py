"""transformers in float32: one static batch with its dynamic cache, greedy."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
import transformers

from tests.benchmarks.peers.side import Spec
from tests.benchmarks.peers.worker import Running


@asynccontextmanager
async def started(spec: Spec) -> AsyncIterator[Running]:
    torch.set_num_threads(spec.num_threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(spec.folder, dtype=torch.float32).eval()

    async def run(prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        times = [time.perf_counter()]
        ids, cache = torch.tensor(prompts), None
        with torch.inference_mode():
            for _ in range(num_tokens):
                out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
                times.append(time.perf_counter())
        return [times] * len(prompts)

    yield Running(run, f"transformers {transformers.__version__}, torch {torch.__version__}")
