"""One side of the comparison as seen from outside: a process with a model that is stopped while others run. Knows no engine."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import asdict, dataclass

MOST_BYTES = 2**26
"""Of one line of answer."""


@dataclass(frozen=True)
class Spec:
    """What a side is to run: a shape of `shapes.SHAPES` under `folder`, its weights in `form`, and room for `num_slots` tokens of
    `num_requests` requests."""

    peer: str
    form: str
    shape: str
    folder: str
    num_threads: int
    num_slots: int
    num_requests: int

    @property
    def name(self) -> str:
        return f"{self.peer} {self.form}"


@dataclass(frozen=True)
class Ran:
    """One load: for each request when it was sent and when each token came, and processor seconds of the process that asked."""

    times: list[list[float]]
    cpu_seconds: float
    peak_bytes: int


class Side:
    """A process, and all that it starts, of which nothing runs unless it is asked."""

    def __init__(self, spec: Spec, process: Process, version: str) -> None:
        self.spec = spec
        self.version = version
        self._process = process

    @classmethod
    async def start(cls, spec: Spec) -> "Side":
        """Load the model; raises `RuntimeError` if the process ends instead."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.benchmarks.peers.worker", json.dumps(asdict(spec)),
            stdin=PIPE, stdout=PIPE, start_new_session=True, limit=MOST_BYTES,
        )  # fmt: skip
        side = cls(spec, process, "")
        side.version = (await side._answer())["version"]
        side._signal(signal.SIGSTOP)
        return side

    async def run(self, prompts: list[list[int]], *, num_tokens: int) -> Ran:
        """All prompts at once, `num_tokens` tokens for each."""
        self._signal(signal.SIGCONT)
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"prompts": prompts, "num_tokens": num_tokens}).encode() + b"\n")
            ran = Ran(**await self._answer())
        finally:
            self._signal(signal.SIGSTOP)
        if any(len(times) != num_tokens + 1 for times in ran.times):
            raise RuntimeError(f"{self.spec.name} gave {[len(times) - 1 for times in ran.times]} tokens instead of {num_tokens} each")
        return ran

    async def close(self) -> None:
        """End the process."""
        self._signal(signal.SIGKILL)
        await self._process.wait()

    async def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.spec.name} has ended with {await self._process.wait()}")
        return json.loads(line)

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:
            os.killpg(self._process.pid, number)
