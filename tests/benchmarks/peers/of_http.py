"""ActorLLM's server over HTTP: the server is a child process, and this process is the client, one event a token."""

import asyncio
import json
import os
import re
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import actorllm
from tests.benchmarks.peers.side import Spec
from tests.benchmarks.peers.worker import Running


@asynccontextmanager
async def started(spec: Spec) -> AsyncIterator[Running]:
    quantize = ["--kv-cache", "bf16"] if spec.form == "bf16" else ["--quantize", spec.form, "--kv-cache", "int8"]
    sizes = {"ACTORLLM_EXECUTION_KV_SLOTS": str(spec.num_slots), "ACTORLLM_SCHEDULING_MAX_RUNNING": str(spec.num_requests)}
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "actorllm", "serve", spec.folder, "--port", "0", "--threads", str(spec.num_threads), *quantize,
        stdout=PIPE, stderr=STDOUT, env=os.environ | sizes,
    )  # fmt: skip
    assert server.stdout is not None
    port = await _port(server.stdout)
    draining = asyncio.create_task(server.stdout.read())
    try:
        yield Running(lambda prompts, num_tokens: _run(port, prompts, num_tokens), f"actorllm {actorllm.__version__} (HTTP)", server.pid)
    finally:
        server.terminate()
        await server.wait()
        await draining


async def _port(lines: asyncio.StreamReader) -> int:
    said = b""
    while line := await lines.readline():
        if found := re.search(rb"http://[^:]+:(\d+)", line):
            return int(found[1])
        said += line
    raise RuntimeError(f"the server has ended: {said.decode()}")


async def _run(port: int, prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
    return await asyncio.gather(*(_stream(port, prompt, num_tokens) for prompt in prompts))


async def _stream(port: int, prompt: list[int], num_tokens: int) -> list[float]:
    """As little work as a client can have with an event: the moment when its line is there is noted."""
    wanted = {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    body = json.dumps(wanted).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    times = [time.perf_counter()]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    while (line := await reader.readline()) and not line.startswith(b"data: [DONE]"):
        if line.startswith(b"data: {"):
            times.append(time.perf_counter())
    writer.close()
    return times
