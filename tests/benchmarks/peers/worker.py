"""The process of one side: loads the model of a `Spec`, then runs the loads that come as lines of JSON.

A side's module (`catalog.PEERS`) has `started(spec)`, an async context manager that gives a `Running`.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

import actorllm  # noqa: F401 - before torch: it bounds how long libgomp's threads spin
from actorllm.cli import event_loop
from tests.benchmarks.peers.catalog import PEERS
from tests.benchmarks.peers.side import Ran, Spec


@dataclass(frozen=True)
class Running:
    """A loaded model: `run(prompts, num_tokens)` gives each request's times, and `pid` is the process that holds it."""

    run: Callable[[list[list[int]], int], Awaitable[list[list[float]]]]
    version: str
    pid: int = field(default_factory=os.getpid)


async def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not get between answers
    module = import_module(f"tests.benchmarks.peers.{PEERS[spec.peer].module}")
    async with module.started(spec) as running:
        print(json.dumps({"version": running.version}), file=answers, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            load, cpu = json.loads(line), time.process_time()
            times = await running.run(load["prompts"], load["num_tokens"])
            ran = Ran(times, time.process_time() - cpu, _peak_bytes(running.pid))
            print(json.dumps(asdict(ran)), file=answers, flush=True)


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    event_loop.run(main())
