"""What was measured, as a table, as JSON and as a plot."""

from datetime import date
from pathlib import Path

import msgspec

from actorllm.cli.bench_loads import Results


def table(results: Results) -> str:
    """Markdown. The share is that of the measured memory bandwidth which reading all weights once a step takes up."""
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
        share = row.steps_per_second * model.num_weight_bytes / machine.read_bytes_per_second
        times = " | ".join(f"{seconds * 1e3:.1f}" for seconds in (row.ttft, row.itl_median, row.itl_p95, row.itl_p99))
        lines.append(f"| {row.concurrency} | {row.tokens_per_second:.1f} | {share:.0%} | {times} |")
    if results.prefill:
        lines += ["", "| prompt tokens | prefill tokens/s |", "|---:|---:|"]
        lines += [f"| {row.prompt_tokens} | {row.tokens_per_second:.0f} |" for row in results.prefill]
    if left_out := results.left_out:
        lines += ["", f"left out: prompts of {', '.join(map(str, left_out))} tokens, as the context has {model.context_len}"]
    return "\n".join([*lines, "", f"peak memory: {results.peak_bytes / 2**20:.0f} MiB"])


def as_json(results: Results) -> str:
    """Every figure, in bytes and seconds."""
    return msgspec.json.format(msgspec.json.encode(results), indent=2).decode() + "\n"


def draw(results: Results, path: Path) -> None:
    """Throughput and latency over the number of requests; the ending of `path` chooses the format. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    throughput, latency = figure.subplots(1, 2)
    concurrency = [row.concurrency for row in results.decoding]
    throughput.plot(concurrency, [row.tokens_per_second for row in results.decoding], marker="o")
    throughput.set(title="Decode throughput", xlabel="requests at once", ylabel="tokens per second", ylim=(0, None))
    for name in ("median", "p95", "p99"):
        latency.plot(concurrency, [getattr(row, f"itl_{name}") * 1e3 for row in results.decoding], marker="o", label=name)
    latency.set(title="Inter-token latency", xlabel="requests at once", ylabel="ms", ylim=(0, None))
    latency.legend()
    for axes in (throughput, latency):
        axes.set_xticks(concurrency)
    figure.suptitle(f"{results.model.name} on {results.machine.name}, {results.machine.num_threads} threads", fontsize=10)
    figure.savefig(path)
