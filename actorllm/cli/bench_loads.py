"""Runs loads on an engine and measures them. Knows no flags and no report.

Decoding is measured apart from prefill: between the moment when every request has had its first token and the one when the
first request ends, all of them decode and nothing else is computed.
"""

import asyncio
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tqdm import tqdm

from actorllm.engine import Engine
from actorllm.errors import SettingsError
from actorllm.execution.load import step_threads
from actorllm.execution.roofline import Machine, measure_machine
from actorllm.execution.step_work import StepWork
from actorllm.house import model_directory
from actorllm.messages import SamplingParams
from actorllm.model_info import ModelInfo
from actorllm.settings import EngineSettings


@dataclass(frozen=True)
class Loads:
    """What to run: `concurrency` requests at once of `prompt_tokens` and `output_tokens`, and single prompts of `prefill` tokens."""

    concurrency: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    prefill: tuple[int, ...]
    rounds: int


@dataclass(frozen=True)
class Decoding:
    """Medians over the rounds for one concurrency. Times are seconds; `itl_*` are over all gaps between two tokens of a request."""

    concurrency: int
    tokens_per_second: float
    ttft: float
    itl_median: float
    itl_p95: float
    itl_p99: float

    @property
    def steps_per_second(self) -> float:
        """A step gives every request a token."""
        return self.tokens_per_second / self.concurrency


@dataclass(frozen=True)
class Prefill:
    """Median over the rounds for one prompt length."""

    prompt_tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class Results:
    """All that one run measured. `peak_bytes` are of this process; `work` is that of a model on the processor, which is probed."""

    loads: Loads
    model: ModelInfo
    machine: Machine
    work: StepWork | None
    decoding: tuple[Decoding, ...]
    prefill: tuple[Prefill, ...]
    peak_bytes: int

    @property
    def left_out(self) -> list[int]:
        """Prompt lengths that were asked for, but are longer than the context."""
        measured = {row.prompt_tokens for row in self.prefill}
        return [length for length in self.loads.prefill if length not in measured]

    def share_of_bandwidth(self, row: Decoding) -> float | None:
        """The measured read rate's share that the weights and the cache take up which the steps touch, halfway through the outputs."""
        if self.work is None:
            return None
        return row.steps_per_second * self.bytes_of_step(row.concurrency) / self.machine.read_bytes_per_second

    def share_of_products(self, row: Prefill) -> float | None:
        """Of the measured rate of float32 products, that which the products with weights take up."""
        if self.work is None:
            return None
        prompts_per_second = row.tokens_per_second / row.prompt_tokens
        return prompts_per_second * self.work.product_ops(row.prompt_tokens) / self.machine.float_ops_per_second

    def decode_limit(self, concurrency: int) -> float | None:
        """Tokens a second at which the first of both measured rates is used up."""
        if self.work is None:
            return None
        reading = self.bytes_of_step(concurrency) / self.machine.read_bytes_per_second
        computing = self.work.product_ops(concurrency, num_sampled=concurrency) / self.machine.float_ops_per_second
        return concurrency / max(reading, computing)

    def bytes_of_step(self, concurrency: int) -> float:
        assert self.work is not None
        return self.work.decode_bytes(concurrency, self.loads.prompt_tokens + self.loads.output_tokens / 2)


async def measure(settings: EngineSettings, loads: Loads) -> Results:
    """Start the engine, run every load `rounds` times after one to warm up, and probe the machine once it has stopped."""
    async with Engine(settings) as engine:
        vocab_size, context = engine.info.vocab_size, engine.info.context_len
        prefill = [length for length in loads.prefill if length < context]
        with tqdm(total=(len(loads.concurrency) + len(prefill)) * loads.rounds + 1, unit="run", leave=False, file=sys.stderr) as bar:
            await run_load(engine, _prompts(2, 16, vocab_size), num_tokens=4)
            bar.update()
            decoding = {}
            for concurrency in sorted(loads.concurrency, reverse=True):  # one that is too large fails before the others took their time
                rounds = []
                for _ in range(loads.rounds):
                    bar.set_description(f"{concurrency} requests")
                    prompts = _prompts(concurrency, loads.prompt_tokens, vocab_size)
                    rounds.append(await run_load(engine, prompts, num_tokens=loads.output_tokens))
                    bar.update()
                decoding[concurrency] = decode_figures(concurrency, rounds)
            prefills = []
            for length in prefill:
                seconds = []
                for _ in range(loads.rounds):
                    bar.set_description(f"prefill of {length}")
                    [times] = await run_load(engine, _prompts(1, length, vocab_size), num_tokens=1)
                    seconds.append(times[1] - times[0])
                    bar.update()
                prefills.append(Prefill(length, length / statistics.median(seconds)))
        info = engine.info
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    machine = await asyncio.to_thread(measure_machine, step_threads(settings.execution))
    work = StepWork.of(model_directory(settings.model), settings) if info.device == "cpu" else None
    return Results(loads, info, machine, work, tuple(map(decoding.__getitem__, loads.concurrency)), tuple(prefills), peak)


def _prompts(count: int, length: int, vocab_size: int) -> list[list[int]]:
    """Random and all different, so that no two of them share anything."""
    return [[random.randrange(vocab_size) for _ in range(length)] for _ in range(count)]


async def run_load(engine: Engine, prompts: Sequence[list[int]], *, num_tokens: int) -> list[list[float]]:
    """For each request: when it was sent, then when each of its tokens came."""

    async def one(prompt: list[int]) -> list[float]:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        times = [time.perf_counter()]
        async for event in engine.generate(prompt, params):
            if event.failure is not None:
                raise event.failure.error()
            times += [time.perf_counter()] * (event.token_id >= 0)
        return times

    return await asyncio.gather(*map(one, prompts))


def decode_figures(concurrency: int, rounds: Sequence[Sequence[Sequence[float]]]) -> Decoding:
    """Of the rounds' requests, each as `run_load` gives it. Raises `SettingsError` where they never decoded all at once."""
    rates, firsts, gaps = [], [], []
    for requests in rounds:
        begin, end = max(times[1] for times in requests), min(times[-1] for times in requests)
        if end <= begin:
            raise SettingsError(
                f"the first of {concurrency} requests ended before the last had its first token, so they never decoded together: "
                "give them longer outputs, more memory for the KV cache (--kv-memory), or run fewer at once"
            )
        num_tokens = sum(begin < at <= end for times in requests for at in times[1:])
        rates.append(num_tokens / (end - begin))
        firsts += [times[1] - times[0] for times in requests]
        gaps += [after - before for times in requests for before, after in pairwise(times[1:])]
    cuts = statistics.quantiles(gaps, n=100) if len(gaps) > 1 else gaps * 99
    return Decoding(concurrency, statistics.median(rates), statistics.median(firsts), cuts[49], cuts[94], cuts[98])
