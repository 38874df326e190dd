"""What was measured, as a table, as JSON and as a plot."""

from datetime import date
from pathlib import Path

import msgspec

from actorllm.cli.bench_loads import Results

NOTES = (
    "share of bandwidth: weights and keys and values that a step touches, of what the probe reads of memory. More than 100% is",
    "possible where caches hold a part.",
    "share of products: those with weights, of what the probe multiplies in float32. More than 100% is possible where weights of fewer",
    "bits have faster instructions.",
)
"""What the shares are, for one who reads the table."""


def table(results: Results) -> str:
    """Markdown."""
    model, machine = results.model, results.machine
    lines = [
        f"{model.name} ({model.architecture}, {model.dtype}, {model.num_weight_bytes / 2**20:.0f} MiB of weights), "
        f"{results.machine.num_threads} threads, {date.today().isoformat()}",
        f"{machine.name}: reads {machine.read_bytes_per_second / 1e9:.1f} GB/s, "
        f"multiplies {machine.float_ops_per_second / 1e9:.0f} GFLOP/s in float32",
        "",
        "| requests | decode tokens/s | share of bandwidth | TTFT ms | ITL median ms | p95 | p99 |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results.decoding:
        times = " | ".join(f"{seconds * 1e3:.1f}" for seconds in (row.ttft, row.itl_median, row.itl_p95, row.itl_p99))
        lines.append(f"| {row.concurrency} | {row.tokens_per_second:.1f} | {_percent(results.share_of_bandwidth(row))} | {times} |")
    if results.prefill:
        lines += ["", "| prompt tokens | prefill tokens/s | share of products |", "|---:|---:|---:|"]
        for row in results.prefill:
            lines.append(f"| {row.prompt_tokens} | {row.tokens_per_second:.0f} | {_percent(results.share_of_products(row))} |")
    if results.work is not None:
        lines += ["", *NOTES]
    if left_out := results.left_out:
        lines += ["", f"left out: prompts of {', '.join(map(str, left_out))} tokens, as the context has {model.context_len}"]
    return "\n".join([*lines, "", f"peak memory: {results.peak_bytes / 2**20:.0f} MiB"])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def as_json(results: Results) -> str:
    """Every figure, in bytes and seconds, and the shares."""
    report = msgspec.to_builtins(results)
    for row, figures in zip(report["decoding"], results.decoding, strict=True):
        row["share_of_bandwidth"] = results.share_of_bandwidth(figures)
    for row, figures in zip(report["prefill"], results.prefill, strict=True):
        row["share_of_products"] = results.share_of_products(figures)
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def draw(results: Results, path: Path) -> None:
    """Throughput and latency over the number of requests; the ending of `path` chooses the format. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    throughput, latency = figure.subplots(1, 2)
    concurrency = [row.concurrency for row in results.decoding]
    throughput.plot(concurrency, [row.tokens_per_second for row in results.decoding], marker="o", label="measured")
    if results.work is not None:
        limits = [results.decode_limit(number) for number in concurrency]
        throughput.plot(concurrency, limits, linestyle="--", color="gray", label="by the probes' rates")
        throughput.legend()
    throughput.set(title="Decode throughput", xlabel="requests at once", ylabel="tokens per second", ylim=(0, None))
    for name in ("median", "p95", "p99"):
        latency.plot(concurrency, [getattr(row, f"itl_{name}") * 1e3 for row in results.decoding], marker="o", label=name)
    latency.set(title="Inter-token latency", xlabel="requests at once", ylabel="ms", ylim=(0, None))
    latency.legend()
    for axes in (throughput, latency):
        axes.set_xticks(concurrency)
    figure.suptitle(f"{results.model.name} on {results.machine.name}, {results.machine.num_threads} threads", fontsize=10)
    figure.savefig(path)
