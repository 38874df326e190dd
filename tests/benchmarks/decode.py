"""Decode speed on CPU beside transformers, in one run: `python tests/benchmarks/decode.py [--threads 2] [--rounds 3]`.

A random Llama of about 125M parameters (hidden 768, 12 layers, 12 heads, 4 KV heads of 64, intermediate 2048,
vocabulary 32000) in float32. One request: decode tokens per second of both sides. 32 requests whose output lengths
spread from 8 to 256: useful tokens per second, ours with continuous batching, transformers' with static batches (every
row runs to the longest). Rounds alternate between the sides; medians and their ratio are printed, and how many parallel
regions one decode step opens. Exits with 1 if a ratio is below what is asked.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import actorllm  # noqa: F401 - before torch: it bounds how long libgomp's threads spin

# isort: split
import parallel_regions
import torch
import transformers
from tokenizers import Tokenizer, models

from actorllm.engine import Engine
from actorllm.messages import SamplingParams
from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings, SchedulingSettings

VOCAB_SIZE = 32000
NUM_LAYERS = 12
PROMPT_LEN = 32
SINGLE_TOKENS = 64
FLOOR_SINGLE = 1.0
FLOOR_SPREAD = 2.0
"""The ratios that are asked, of one request and of 32."""

OUTPUT_LENS = [8 + round(index * (256 - 8) / 31) for index in range(32)]


def make_checkpoint(folder: Path) -> transformers.LlamaForCausalLM:
    """Random weights on disk, with a tokenizer that only names ids."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    vocab = {f"w{token_id} ": token_id for token_id in range(VOCAB_SIZE)}
    Tokenizer(models.WordLevel(vocab, unk_token="w0 ")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return model


def prompts(count: int) -> list[list[int]]:
    """Random prompts of `PROMPT_LEN` tokens."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCAB_SIZE, (count, PROMPT_LEN), generator=generator).tolist()


def theirs(model: transformers.LlamaForCausalLM, batch: list[list[int]], num_tokens: int) -> float:
    """Seconds of `generate` for a static batch."""
    ids = torch.tensor(batch)
    settings = transformers.GenerationConfig(
        max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0
    )
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return time.perf_counter() - began


async def ours(engine: Engine, batch: list[list[int]], lens: list[int]) -> float:
    """Seconds until every request has ended."""

    async def one(prompt: list[int], num_tokens: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        async for _ in engine.generate(prompt, params):
            pass

    began = time.perf_counter()
    await asyncio.gather(*(one(prompt, num_tokens) for prompt, num_tokens in zip(batch, lens, strict=True)))
    return time.perf_counter() - began


def report(name: str, ours_seconds: list[float], *, theirs_seconds: list[float], num_tokens: int, asked: float) -> bool:
    """Print a row and return whether the ratio of the medians (above 1: ours is faster) is what is asked."""
    mine, other = statistics.median(ours_seconds), statistics.median(theirs_seconds)
    print(f"| {name} | {num_tokens / mine:.1f} | {num_tokens / other:.1f} | {other / mine:.2f} | {asked:.2f} |")
    return other / mine >= asked


async def main(num_threads: int, num_rounds: int) -> bool:
    """Whether every floor was reached."""
    sys.setswitchinterval(5e-5)
    torch.set_num_threads(num_threads)
    with tempfile.TemporaryDirectory() as name:
        model = make_checkpoint(Path(name))
        settings = EngineSettings(
            model=ModelSettings(path=name),
            execution=ExecutionSettings(threads=num_threads, kv_slots=16384),
            scheduling=SchedulingSettings(max_running=64),
        )
        async with Engine(settings) as engine:
            await ours(engine, prompts(2), [8, 8])
            theirs(model, prompts(2), 8)
            cases: list[tuple[str, int, float, Callable[[], object], Callable[[], float]]] = [
                (
                    f"1 request, {SINGLE_TOKENS} tokens",
                    SINGLE_TOKENS,
                    FLOOR_SINGLE,
                    lambda: ours(engine, prompts(1), [SINGLE_TOKENS]),
                    lambda: theirs(model, prompts(1), SINGLE_TOKENS),
                ),
                (
                    "32 requests, 8 to 256 tokens",
                    sum(OUTPUT_LENS),
                    FLOOR_SPREAD,
                    lambda: ours(engine, prompts(32), OUTPUT_LENS),
                    lambda: theirs(model, prompts(32), max(OUTPUT_LENS)),
                ),
            ]
            print(f"torch {torch.__version__}, transformers {transformers.__version__}, {num_threads} threads, float32")
            print("| load | ActorLLM tokens/s | transformers tokens/s | ratio | asked |\n|---|---|---|---|---|")
            is_reached = True
            for title, num_tokens, asked, mine, other in cases:
                mine_seconds, other_seconds = [], []
                for _ in range(num_rounds):
                    mine_seconds.append(await mine())  # type: ignore[misc]
                    other_seconds.append(await asyncio.to_thread(other))
                is_reached &= report(title, mine_seconds, theirs_seconds=other_seconds, num_tokens=num_tokens, asked=asked)
    if parallel_regions.compiler() is not None:
        for regions in parallel_regions.measure(NUM_LAYERS, threads=num_threads, vocab_size=VOCAB_SIZE):
            print(f"parallel regions of a decode step with {regions.num_rows} rows: {regions.decode:g}, {NUM_LAYERS} layers")
    return is_reached


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sys.exit(not asyncio.run(main(arguments.threads, arguments.rounds)))
