"""OpenVINO GenAI's continuous batching pipeline, on a graph of `openvino_graph`; keys and values as it chooses (8 bits)."""

import sys
import time
from asyncio.subprocess import create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy
import openvino
import openvino_genai

from tests.benchmarks.peers.side import Spec
from tests.benchmarks.peers.worker import Running

BLOCK_SLOTS = 32
STEP_TOKENS = 2048


@asynccontextmanager
async def started(spec: Spec) -> AsyncIterator[Running]:
    folder = Path(spec.folder) / f"openvino-{spec.form}"
    if not (folder / "openvino_model.bin").exists():
        # In a process of its own: the memory that it takes, torch's above all, is not OpenVINO's.
        writing = await create_subprocess_exec(sys.executable, "-m", "tests.benchmarks.peers.openvino_graph", spec.shape, folder)
        assert await writing.wait() == 0, f"{folder} could not be written"
    scheduling = openvino_genai.SchedulerConfig()
    scheduling.num_kv_blocks = spec.num_slots // BLOCK_SLOTS + 2 * spec.num_requests
    scheduling.max_num_seqs = spec.num_requests
    scheduling.max_num_batched_tokens = STEP_TOKENS
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        folder, scheduling, "CPU", {"INFERENCE_NUM_THREADS": spec.num_threads, "PERFORMANCE_HINT": "LATENCY"}
    )

    async def run(prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        return _run(pipeline, prompts, num_tokens)

    yield Running(run, f"openvino-genai {openvino_genai.__version__}")


def _run(pipeline: "openvino_genai.ContinuousBatchingPipeline", prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens = settings.min_new_tokens = num_tokens
    settings.ignore_eos, settings.do_sample = True, False
    settings.set_eos_token_id(0)
    times, handles = [], []
    for number, prompt in enumerate(prompts):
        times.append([time.perf_counter()])
        handles.append(pipeline.add_request(number, openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)), settings))
    while pipeline.has_non_finished_requests():
        pipeline.step()
        now = time.perf_counter()
        for of_request, handle in zip(times, handles, strict=True):
            if handle.can_read():
                of_request += [now] * sum(len(output.generated_ids) for output in handle.read().values())
    return times
