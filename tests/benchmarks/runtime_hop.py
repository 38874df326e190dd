"""What a hop between two actors costs: messages a second and microseconds, encoded and plain, median of 5.

    python tests/benchmarks/runtime_hop.py

`send` pushes messages through a pipeline of actors, each of which sends on to the next; a hop is one actor's part. `ask` is a
question and its answer, one at a time, to one actor. The message carries what a small message of the engine
carries: a short string, two ints and 256 bytes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter

from msgspec import Struct

from actorllm.runtime.actor import Actor
from actorllm.runtime.ref import Ref
from actorllm.runtime.supervisor import Supervisor

RUNS = 5
NUM_MESSAGES = 5_000
NUM_STAGES = 4
CAPACITY = 64


class Parcel(Struct, frozen=True, tag=True):
    request_id: str
    number: int
    epoch: int
    data: bytes


class Stage(Actor[Parcel]):
    """Sends on to `consumer`; the last one sets `arrived` when it has seen the last message."""

    def __init__(self, consumer: Ref | None, arrived: asyncio.Event) -> None:
        self.consumer = consumer
        self.arrived = arrived

    async def receive(self, message: Parcel) -> Parcel:
        if self.consumer is not None:
            await self.consumer.send(message)
        elif message.number == NUM_MESSAGES - 1:
            self.arrived.set()
        return message


def parcels() -> list[Parcel]:
    return [Parcel("req-0123456789", number, 1, bytes(256)) for number in range(NUM_MESSAGES)]


async def time_send(encode: bool) -> float:
    """Seconds a hop of a pipeline of `NUM_STAGES` actors."""
    arrived = asyncio.Event()
    async with Supervisor("benchmark", encode=encode) as supervisor:
        ref: Ref | None = None
        for stage in range(NUM_STAGES):
            ref = await supervisor.start(f"stage {stage}", lambda ref=ref: Stage(ref, arrived), capacity=CAPACITY)
        assert ref is not None
        messages = parcels()
        began = perf_counter()
        for message in messages:
            await ref.send(message)
        await arrived.wait()
        return (perf_counter() - began) / (NUM_MESSAGES * NUM_STAGES)


async def time_ask(encode: bool) -> float:
    """Seconds a question and its answer."""
    async with Supervisor("benchmark", encode=encode) as supervisor:
        ref = await supervisor.start("echo", lambda: Stage(None, asyncio.Event()), capacity=CAPACITY)
        messages = parcels()
        began = perf_counter()
        for message in messages:
            await ref.ask(message)
        return (perf_counter() - began) / NUM_MESSAGES


def main() -> None:
    kinds: list[tuple[str, Callable[[bool], Awaitable[float]]]] = [("send", time_send), ("ask", time_ask)]
    print(f"{'':6}{'messages':10}{'messages/s':>12}{'us per hop':>12}{'slowest':>10}")
    for name, measure in kinds:
        for encode in (True, False):
            seconds = [asyncio.run(measure(encode)) for _ in range(RUNS)]  # type: ignore[arg-type]
            middle, slowest = median(seconds), max(seconds)
            label = "encoded" if encode else "plain"
            print(f"{name:6}{label:10}{1 / middle:12,.0f}{middle * 1e6:12.2f}{slowest * 1e6:10.2f}")


if __name__ == "__main__":
    main()
