"""What the sides did, as a table and as JSON."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import msgspec

from actorllm.cli.bench_loads import Decoding, Prefill
from actorllm.execution.roofline import Machine
from tests.benchmarks.peers.catalog import PEERS
from tests.benchmarks.peers.shapes import SHAPES


@dataclass(frozen=True)
class Figures:
    """Medians of one side, not numbers where it has none of a load. `client_cpu` are processor seconds a token of the process that
    asked, by concurrency."""

    peer: str
    form: str
    version: str
    decoding: tuple[Decoding, ...]
    prefill: tuple[Prefill, ...]
    peak_bytes: int
    client_cpu: tuple[float, ...]

    @property
    def bits(self) -> int:
        return PEERS[self.peer].forms[self.form].bits


@dataclass(frozen=True)
class Report:
    """One run; `probes` are of the machine, one a round."""

    date: str
    model: str
    prompt_tokens: int
    output_tokens: int
    probes: tuple[Machine, ...]
    sides: tuple[Figures, ...]

    @property
    def read_rate(self) -> float:
        """Bytes a second."""
        return statistics.median(probe.read_bytes_per_second for probe in self.probes)


def today() -> str:
    return date.today().isoformat()


def table(report: Report) -> str:
    """Markdown: tokens a second; the share is that of the measured bandwidth which one request's weights, and keys and values halfway, take up."""
    first = report.sides[0]
    reads = [probe.read_bytes_per_second / 1e9 for probe in report.probes]
    products = [probe.float_ops_per_second / 1e9 for probe in report.probes]
    heads = [f"decode {row.concurrency}" for row in first.decoding] + [f"prefill {row.prompt_tokens}" for row in first.prefill]
    lines = [
        f"{report.model}, prompt {report.prompt_tokens}, new {report.output_tokens}, {report.date}, {len(report.probes)} rounds, "
        f"{report.probes[0].num_threads} threads",
        f"{report.probes[0].name}: reads {_range(reads)} GB/s, multiplies {_range(products)} GFLOP/s in float32",
        "",
        "| side | " + " | ".join(heads) + " | share of bandwidth | peak MiB |",
        "|---|" + "---:|" * (len(heads) + 2),
    ]
    for side in report.sides:
        rates = [_text(row.tokens_per_second, ".1f") for row in side.decoding] + [f"{row.tokens_per_second:.0f}" for row in side.prefill]
        lines.append(f"| {side.peer} {side.form} | {' | '.join(rates)} | {_share(side, report)} | {side.peak_bytes / 2**20:.0f} |")
    lines += [*_ratios(report.sides), *_http(report.sides), ""]
    return "\n".join([*lines, *sorted({side.version for side in report.sides})])


def as_json(report: Report) -> str:
    """Every figure, in bytes and seconds; null where a side has none."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n"


def _text(value: float, form: str) -> str:
    """Nothing for what is not a number."""
    return "" if math.isnan(value) else format(value, form)


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _share(side: Figures, report: Report) -> str:
    alone = next((row for row in side.decoding if row.concurrency == 1), None)
    if alone is None:
        return ""
    form, shape = PEERS[side.peer].forms[side.form], SHAPES[report.model]
    (num_linear, num_head), num_tokens = shape.num_read, report.prompt_tokens + report.output_tokens / 2
    num_bytes = (num_linear * form.linear + num_head * form.head + num_tokens * shape.num_kv * form.kv) / 8
    return _text(alone.tokens_per_second * num_bytes / report.read_rate, ".0%")


def _rates(side: Figures) -> list[float]:
    return [row.tokens_per_second for row in (*side.decoding, *side.prefill)]


def _ratios(sides: Iterable[Figures]) -> list[str]:
    """The engine against the best peer with weights of as many bits, load by load."""
    lines, own = [], {side.bits: side for side in sides if side.peer == "actorllm"}
    for bits, side in own.items():
        peers = [_rates(other) for other in sides if other.bits == bits and not other.peer.startswith("actorllm")]
        if peers:
            ratios = [mine / _most(theirs) for mine, theirs in zip(_rates(side), zip(*peers, strict=True), strict=True)]
            lines.append(f"| ratio to the best peer, {bits} bits | " + " | ".join(_text(ratio, ".2f") for ratio in ratios) + " | | |")
    return lines


def _most(rates: Iterable[float]) -> float:
    """Of those that are numbers, if any is."""
    return max((rate for rate in rates if not math.isnan(rate)), default=math.nan)


def _http(sides: Sequence[Figures]) -> list[str]:
    """What streaming costs the engine, and what the client's process took."""
    lines, own = [], {side.form: side for side in sides if side.peer == "actorllm"}
    for side in sides:
        if side.peer != "actorllm-http":
            continue
        if side.form in own:
            lost = [1 - mine / alone for mine, alone in zip(_rates(side), _rates(own[side.form]), strict=True)]
            lines.append(f"| lost over HTTP, {side.form} | " + " | ".join(_text(share, ".0%") for share in lost) + " | | |")
        costs = ", ".join(
            f"{row.concurrency}: {cpu * 1e6:.0f}" for row, cpu in zip(side.decoding, side.client_cpu, strict=True)
        )
        lines += ["", f"client of {side.peer} {side.form}, processor us a token by requests: {costs}"]
    return lines
