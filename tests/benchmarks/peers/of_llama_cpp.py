"""llama.cpp by llama-cpp-python's plain bindings: the same weights as GGUF, many sequences in one context, greedy.

Q4_0 keeps the embedding and the head in Q8_0. Keys and values are float16, as llama.cpp chooses.
"""

import sys
import time
from asyncio.subprocess import create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy

from tests.benchmarks.peers.shapes import SHAPES
from tests.benchmarks.peers.side import Spec
from tests.benchmarks.peers.worker import Running

BATCH_TOKENS = 2048

@asynccontextmanager
async def started(spec: Spec) -> AsyncIterator[Running]:
    path = Path(spec.folder) / f"{spec.form}.gguf"
    if not path.exists():
        # In a process of its own: the memory that it takes, torch's above all, is not llama.cpp's.
        writing = await create_subprocess_exec(sys.executable, "-m", "tests.benchmarks.peers.gguf_file", spec.shape, path)
        assert await writing.wait() == 0, f"{path} could not be written"
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_seq_max = spec.num_slots, BATCH_TOKENS, spec.num_requests
    settings.n_threads = settings.n_threads_batch = spec.num_threads
    settings.kv_unified = True
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    async def run(prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        return _run(context, batch, prompts, num_tokens=num_tokens, vocab_size=SHAPES[spec.shape].vocab_size)

    yield Running(run, f"llama-cpp-python {llama_cpp.__version__}")


def _run(context: Any, batch: Any, prompts: list[list[int]], *, num_tokens: int, vocab_size: int) -> list[list[float]]:
    times = [[time.perf_counter()] for _ in prompts]
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    entries = [
        (token, place, row, place == len(prompt) - 1) for row, prompt in enumerate(prompts) for place, token in enumerate(prompt)
    ]
    for _ in range(num_tokens):
        following = []
        for begin in range(0, len(entries), BATCH_TOKENS):
            for (_, place, row), logits in _decode(context, batch, entries[begin : begin + BATCH_TOKENS]):
                best = int(numpy.ctypeslib.as_array(logits, (vocab_size,)).argmax())
                times[row].append(time.perf_counter())
                following.append((best, place + 1, row, True))
        entries = following
    return times


def _decode(context: Any, batch: Any, entries: list[tuple[int, int, int, bool]]):
    """Compute (token, position, sequence, whether it is asked for its logits); gives the last ones with their logits."""
    batch.n_tokens = len(entries)
    for index, (token, place, row, is_last) in enumerate(entries):
        batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, place, 1
        batch.seq_id[index][0], batch.logits[index] = row, is_last
    if code := llama_cpp.llama_decode(context, batch):
        raise RuntimeError(f"llama_decode gave {code}")
    for index, (*entry, is_last) in enumerate(entries):
        if is_last:
            yield entry, llama_cpp.llama_get_logits_ith(context, index)
