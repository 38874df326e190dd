"""ActorLLM beside other CPU engines, the same work in one run: `python -m tests.benchmarks.peers --model 125m`.

    python -m tests.benchmarks.peers --model 125m --bits 8 --peers actorllm,openvino,llama-cpp --rounds 5
    python -m tests.benchmarks.peers --model 125m --bits 8 --http --concurrency 1,4,32

Every side is a process with the same random weights; the sides take turns load by load, and a side that is not asked is stopped,
so that threads which spin disturb nobody. All are counted alike: decoding between the moment when every request has had its first
token and the one when the first request ends. Bandwidth and the rate of float32 products are measured at every round's end. Peers
come from requirements-bench.txt; what is not installed is skipped by name.
"""

import argparse
import asyncio
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import actorllm  # noqa: F401 - before torch: it bounds how long libgomp's threads spin
from actorllm.cli.bench_loads import Decoding, Prefill, decode_figures
from actorllm.errors import SettingsError
from actorllm.execution.roofline import Machine, measure_machine
from tests.benchmarks.peers.catalog import PEERS, chosen
from tests.benchmarks.peers.checkpoint import make_checkpoint
from tests.benchmarks.peers.report import Figures, Report, as_json, table, today
from tests.benchmarks.peers.shapes import SHAPES
from tests.benchmarks.peers.side import Ran, Side, Spec

SPARE_SLOTS = 256
WARM_TOKENS = 4


@dataclass(frozen=True)
class Load:
    """`count` requests at once of `prompt` and `new` tokens; prefill is one request with one new token."""

    count: int
    prompt: int
    new: int

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """Random, all different, and the same for every side."""
        numbers = random.Random(f"{self} {seed}")
        return [[numbers.randrange(vocab_size) for _ in range(self.prompt)] for _ in range(self.count)]


async def compare(sides: Sequence[Side], loads: Sequence[Load], *, vocab_size: int, rounds: int) -> tuple[dict, list[Machine]]:
    """side -> load -> its results: every side runs every load once a round, after a short round that is not counted. And the
    machine's rates at the end of every round."""
    probes: list[Machine] = []
    ran: dict[Side, dict[Load, list[Ran]]] = {side: {load: [] for load in loads} for side in sides}
    for number in range(rounds + 1):
        for load in loads:
            prompts = load.prompts(vocab_size, number)
            for side in sides if number % 2 else reversed(sides):
                result = await side.run(prompts, num_tokens=load.new if number else min(load.new, WARM_TOKENS))
                if number:
                    ran[side][load].append(result)
                    speed = rate(load, [result])
                    said = "no figure, its requests never decoded together" if math.isnan(speed) else f"{speed:.1f} tokens/s"
                    print(f"{side.spec.name}, {load}: {said}", file=sys.stderr, flush=True)
        if number:
            probes.append(await asyncio.to_thread(measure_machine, sides[0].spec.num_threads))
    return ran, probes


def rate(load: Load, results: Sequence[Ran]) -> float:
    """Median tokens a second, of decoding or of prefill; not a number as `decoding_of` says."""
    if load.new > 1:
        return decoding_of(load, results).tokens_per_second
    return load.prompt / statistics.median(result.times[0][1] - result.times[0][0] for result in results)


def decoding_of(load: Load, results: Sequence[Ran]) -> Decoding:
    """Medians over `results`; not numbers where a side that prefills one after another never decoded all requests at once."""
    try:
        return decode_figures(load.count, [result.times for result in results])
    except SettingsError:
        return Decoding(load.count, *[math.nan] * 5)


def figures(side: Side, ran: dict[Load, list[Ran]]) -> Figures:
    """Medians over the rounds."""
    decoding, prefill, client_cpu = [], [], []
    for load, results in ran.items():
        if load.new > 1:
            decoding.append(decoding_of(load, results))
            client_cpu.append(statistics.median(result.cpu_seconds for result in results) / (load.count * load.new))
        else:
            prefill.append(Prefill(load.prompt, rate(load, results)))
    peak = max(result.peak_bytes for results in ran.values() for result in results)
    return Figures(side.spec.peer, side.spec.form, side.version, tuple(decoding), tuple(prefill), peak, tuple(client_cpu))


async def main(arguments: argparse.Namespace) -> None:
    shape, most = SHAPES[arguments.model], max(arguments.concurrency)
    loads = [Load(count, arguments.prompt, arguments.new) for count in arguments.concurrency]
    loads += [Load(1, length, 1) for length in arguments.prefill]
    num_slots = max(load.count * (load.prompt + load.new) for load in loads) + SPARE_SLOTS
    pairs, missing = chosen(arguments.peers, arguments.bits)
    print("\n".join(missing), file=sys.stderr)
    folder = str(arguments.folder / arguments.model)
    make_checkpoint(shape, Path(folder))
    sides: list[Side] = []
    try:
        for peer, form in pairs:
            print(f"loading {peer} {form}", file=sys.stderr, flush=True)
            sides.append(await Side.start(Spec(peer, form, arguments.model, folder, arguments.threads, num_slots, most)))
        ran, probes = await compare(sides, loads, vocab_size=shape.vocab_size, rounds=arguments.rounds)
    finally:
        for side in sides:
            await side.close()
    all_figures = tuple(figures(side, ran[side]) for side in sides)
    report = Report(today(), arguments.model, arguments.prompt, arguments.new, tuple(probes), all_figures)
    print(table(report))
    if arguments.json is not None:
        arguments.json.write_text(as_json(report))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="125m")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=[name for name in PEERS if name != "actorllm-http"])
    parser.add_argument("--bits", type=numbers, default=(4, 8, 16, 32), help="of the weights (default 4,8,16,32)")
    parser.add_argument("--http", action="store_true", help="the engine beside its own server over HTTP, no peers")
    parser.add_argument("--concurrency", type=numbers, default=(1, 4, 16, 32), help="requests at once (default 1,4,16,32)")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128, help="new tokens (default 128)")
    parser.add_argument("--prefill", type=numbers, default=(512, 2048), help="prompts of one request (default 512,2048)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="where models are kept (default build/benchmarks)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if given.http:
        given.peers = ["actorllm", "actorllm-http"]
    asyncio.run(main(given))
