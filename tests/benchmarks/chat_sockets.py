"""Many chats at once: `python tests/benchmarks/chat_sockets.py [MODEL] [--sockets 200] [--turns 3] [--tokens 64] [--threads 1]`.

`actorllm serve` in a process of its own, with its default settings but for what is given here. Every socket asks at the same moment,
waits for its whole answer, and asks again. Printed: the time to first token of each round, as the median, the slowest and
their ratio, which is what one client may suffer from the others; then the memory of a socket that is open and does nothing.
Exits with 1 if any answer ended with an error or any ratio is above `FAIR`.
"""

import argparse
import asyncio
import contextlib
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp

FAIR = 3.0
IDLE_SOCKETS = 1000
QUESTIONS = (
    "What is ActorLLM?",
    "What is {} plus {}?",
    "Tell me a short story about a cat.",
    "Hello, who are you?",
    "Thank you.",
)


@dataclass
class Answer:
    """How one answer went, as the client saw it; seconds."""

    first_token: float
    total: float
    num_tokens: int
    error: str | None


@dataclass
class Server:
    """A running `actorllm serve`."""

    process: asyncio.subprocess.Process
    address: str

    def memory(self) -> int:
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) * 1024


@contextlib.asynccontextmanager
async def served(flags: list[str]) -> AsyncIterator[Server]:
    """Start it, and wait until it says where it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "actorllm", "serve", "--port", "0", *flags, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    said = ""
    try:
        while not (found := re.search(r" at (http://\S+)", said)):
            if not (said := (await process.stderr.readline()).decode()):
                raise SystemExit("the server ended before it listened")
            print(said, end="", file=sys.stderr)
        swallowing = asyncio.create_task(process.stderr.read())
        yield Server(process, found[1])
        process.terminate()
        await process.wait()
        swallowing.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def ask(socket: aiohttp.ClientWebSocketResponse, text: str) -> Answer:
    """One turn, to the end of its answer."""
    began, first = time.perf_counter(), None
    await socket.send_json({"type": "send", "conversation": "a", "text": text})
    while True:
        message = await socket.receive_json()
        if message["type"] == "delta":
            first = first or time.perf_counter() - began
        elif message["type"] in ("finished", "error"):
            total = time.perf_counter() - began
            error = message["error"]
            return Answer(first or total, total, message.get("usage", {}).get("completion_tokens", 0), error and error["message"])


async def opened(session: aiohttp.ClientSession, server: Server, sampling: dict) -> aiohttp.ClientWebSocketResponse:
    """A socket with an empty conversation."""
    socket = await session.ws_connect(server.address + "/v1/chat/ws")
    await socket.send_json({"type": "open", "conversation": "a", "sampling": sampling})
    while (await socket.receive_json())["type"] != "conversation":
        pass
    return socket


async def chat(server: Server, num_sockets: int, *, num_turns: int, num_tokens: int) -> bool:
    """Rounds of answers to all sockets at once; returns whether every round was fair and without errors."""
    is_good = True
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sampling = {"max_tokens": num_tokens, "temperature": 0.7}
        sockets = [await opened(session, server, sampling | {"seed": number}) for number in range(num_sockets)]
        await ask(sockets[0], "Hello")  # the template's process starts with the first conversation
        for turn in range(num_turns):
            began = time.perf_counter()
            texts = [QUESTIONS[(number + turn) % len(QUESTIONS)].format(number, turn) for number in range(num_sockets)]
            answers = await asyncio.gather(*map(ask, sockets, texts))
            seconds = time.perf_counter() - began
            firsts = sorted(answer.first_token for answer in answers)
            ratio = firsts[-1] / statistics.median(firsts)
            errors = [answer.error for answer in answers if answer.error]
            num_answered = sum(answer.num_tokens for answer in answers)
            print(
                f"round {turn + 1}: {num_sockets} answers in {seconds:.1f} s ({num_answered / seconds:.0f} tokens/s), {len(errors)} errors; "
                f"TTFT median {statistics.median(firsts):.2f} s, slowest {firsts[-1]:.2f} s, ratio {ratio:.2f} (asked: at most {FAIR:g})"
            )
            is_good = is_good and not errors and ratio <= FAIR
            for error in sorted(set(errors)):
                print(f"  {error}")
    return is_good


async def idle(server: Server, num_sockets: int) -> None:
    """Memory of sockets that only are open; the first hundred make what all share."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sockets = [await opened(session, server, {}) for _ in range(100)]
        before = server.memory()
        sockets += [await opened(session, server, {}) for _ in range(num_sockets)]
        print(f"memory per idle socket: {(server.memory() - before) / num_sockets / 1024:.1f} KiB, over {num_sockets} sockets")


async def main(arguments: argparse.Namespace) -> bool:
    """Both measurements, each on a server of its own."""
    flags = [*([arguments.model] if arguments.model else []), "--threads", str(arguments.threads)]
    async with served(flags) as server:
        await idle(server, IDLE_SOCKETS)
    async with served(flags) as server:
        return await chat(server, arguments.sockets, num_turns=arguments.turns, num_tokens=arguments.tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a model's folder (default: what `actorllm serve` serves)")
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    sys.exit(not asyncio.run(main(parser.parse_args())))
