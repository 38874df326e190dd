"""ActorLLM's engine, tokens in and tokens out. Keys and values take 8 bits with weights of 8 or 4, as OpenVINO chooses, else 16, as
llama.cpp does."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import actorllm
from actorllm.cli.bench_loads import run_load
from actorllm.cli.serve import SWITCH_INTERVAL
from actorllm.engine import Engine
from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings, SchedulingSettings
from tests.benchmarks.peers.side import Spec
from tests.benchmarks.peers.worker import Running


@asynccontextmanager
async def started(spec: Spec) -> AsyncIterator[Running]:
    sys.setswitchinterval(SWITCH_INTERVAL)
    quantize = None if spec.form == "bf16" else spec.form
    settings = EngineSettings(
        model=ModelSettings(path=spec.folder, quantize=quantize),
        execution=ExecutionSettings(
            threads=spec.num_threads, kv_slots=spec.num_slots, kv_cache="bf16" if quantize is None else "int8"
        ),
        scheduling=SchedulingSettings(max_running=spec.num_requests),
    )
    async with Engine(settings) as engine:
        yield Running(lambda prompts, num_tokens: run_load(engine, prompts, num_tokens=num_tokens), f"actorllm {actorllm.__version__}")
