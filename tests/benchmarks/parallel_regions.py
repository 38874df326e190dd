"""Parallel regions of one step, counted exactly: `python tests/benchmarks/parallel_regions.py [--layers 12] [--threads 2]`.

Each region wakes and joins all threads of the device thread's pool, which costs the same however little there is to do. A
child process counts them by a small library in front of libgomp, on random Llamas of the benchmark's sizes (`decode.py`).
"""

import argparse
import asyncio
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

SOURCE = Path(__file__).with_suffix(".cpp")
PROMPT_LEN = 32
NUM_STEPS = 4


class Regions(msgspec.Struct, frozen=True):
    """Regions of one decode step of `num_rows` rows, of one prefill of as many prompts, and how many of all that were counted
    another thread than the device's had opened."""

    num_rows: int
    decode: float
    prefill: int
    elsewhere: int


def compiler() -> str | None:
    """What can compile the counting library."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def measure(num_layers: int, *, threads: int = 2, rows: Sequence[int] = (1, 32), vocab_size: int = 32000) -> list[Regions]:
    """Compile the library, count in a child process."""
    found = compiler()
    assert found is not None, "ask `compiler` first"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "parallel_regions.so"
        subprocess.run([found, "-std=c++17", "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(library), "-ldl"], check=True)
        arguments = {"num_layers": num_layers, "threads": threads, "rows": rows, "vocab_size": vocab_size, "library": str(library)}
        child = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(arguments)],
            env=os.environ | {"LD_PRELOAD": str(library)},
            stdout=subprocess.PIPE,
            check=True,
        )
    return msgspec.json.decode(child.stdout, type=list[Regions])


async def count(library: str, *, num_layers: int, threads: int, rows: Sequence[int], vocab_size: int) -> list[Regions]:
    """In the child: steps that the scheduler planned, run on a device thread."""
    import actorllm  # noqa: F401 - before torch: it bounds how long libgomp's threads spin

    # isort: split
    import torch

    from actorllm.cache.sizing import GroupSize
    from actorllm.execution.device_thread import DeviceThread
    from actorllm.execution.runner import ResidentRunner, RunnerSizes
    from actorllm.layers.shard import Shard
    from actorllm.settings import SchedulingSettings
    from actorllm.testing.drive import Drive
    from actorllm.weights.random import RandomWeights
    from actorllm.weights.source import load_module
    from actorllm_llama.llama import LlamaForCausalLM

    counted, device = ctypes.CDLL(library), torch.device("cpu")
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12,
        "num_key_value_heads": 4, "head_dim": 64, "num_hidden_layers": num_layers, "vocab_size": vocab_size,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip

    def build() -> ResidentRunner:
        model = LlamaForCausalLM(LlamaForCausalLM.config_class.from_hf(config), Shard())
        load_module(model, RandomWeights())
        return ResidentRunner(
            model, RunnerSizes(num_slots=(4096,), max_running=64, context=256), dtype=torch.float32, device=device
        )

    thread = DeviceThread("cpu", device, num_threads=threads)
    runner = await thread.submit(build)
    results = []
    for num_rows in rows:
        settings = SchedulingSettings(max_running=64, max_step_tokens=num_rows * PROMPT_LEN)
        drive = Drive(settings, [GroupSize("full", 4096)], context=256, vocab_size=vocab_size)
        for number in range(num_rows):
            prompt = [(number * 7 + place) % vocab_size for place in range(PROMPT_LEN)]
            drive.add(str(number), prompt, max_tokens=NUM_STEPS + 1, temperature=0.0)
        drive.run()
        opened = []
        for step in drive.steps:
            before = counted.parallel_regions(), await thread.submit(counted.parallel_regions_here)
            await thread.submit(partial(runner.run, step))
            after = counted.parallel_regions(), await thread.submit(counted.parallel_regions_here)
            opened.append([late - early for early, late in zip(before, after, strict=True)])
        runner.reset()
        prefill, *decodes = opened
        results.append(
            Regions(
                num_rows=num_rows,
                decode=sum(everywhere for everywhere, _ in decodes) / len(decodes),
                prefill=prefill[0],
                elsewhere=sum(everywhere - here for everywhere, here in opened),
            )
        )
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", type=json.loads)
    arguments = parser.parse_args()
    if arguments.child:
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(count(**arguments.child))))
    else:
        for regions in measure(arguments.layers, threads=arguments.threads):
            print(regions)
