"""The comparison with other engines, of which only the engine itself is here: its processes, its counting, its table."""

import json
import math
import subprocess
import sys
from pathlib import Path

from actorllm.cli.bench_loads import Decoding
from actorllm.execution.roofline import Machine
from tests.benchmarks.peers.__main__ import Load, decoding_of, rate
from tests.benchmarks.peers.catalog import PEERS, chosen
from tests.benchmarks.peers.report import Figures, Report, as_json, table
from tests.benchmarks.peers.shapes import SHAPES
from tests.benchmarks.peers.side import Ran

LOADS = ("--prompt", "8", "--new", "6", "--concurrency", "1,3", "--prefill", "32", "--rounds", "1", "--threads", "1")


def test_two_sides_take_turns(tmp_path: Path) -> None:
    sides = ("--peers", "actorllm,actorllm-http", "--bits", "8", "--model", "tiny")
    command = [sys.executable, "-m", "tests.benchmarks.peers", *sides, *LOADS, "--folder", str(tmp_path), "--json", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert "| actorllm int8 |" in ran.stdout and "lost over HTTP, int8" in ran.stdout
    report = json.loads((tmp_path / "out").read_text())
    for side in report["sides"]:
        assert [row["concurrency"] for row in side["decoding"]] == [1, 3] and side["peak_bytes"] > 2**20
        assert all(row["tokens_per_second"] > 0 for row in side["decoding"] + side["prefill"])
    assert report["sides"][1]["client_cpu"][0] > 0 and len(report["probes"]) == 1


def test_peers_that_are_not_installed_are_named() -> None:
    absent = {**PEERS, "absent": PEERS["openvino"].__class__("of_absent", "no_such_engine", "no-such-engine", {})}
    pairs, missing = chosen(("actorllm", "absent"), (8,), peers=absent)
    assert pairs == [("actorllm", "int8")] and missing == ["skipped absent: pip install no-such-engine"]


def test_the_share_of_bandwidth_counts_keys_and_values() -> None:
    machine = Machine("machine", 2, read_bytes_per_second=1e10, float_ops_per_second=1e11)
    side = Figures("actorllm", "int8", "1", (Decoding(1, 100.0, 0.1, 0.01, 0.01, 0.01),), (), 2**20, ())
    num_bytes = sum(SHAPES["1b"].num_read) + (20000 + 20 / 2) * SHAPES["1b"].num_kv * 8.5 / 8
    assert f"| {num_bytes * 100 / 1e10:.0%} |" in table(Report("", "1b", 20000, 20, (machine,), (side,)))


def test_a_side_that_never_decoded_all_at_once_has_no_figure() -> None:
    """One that prefills one request after another ends no comparison of the others."""
    load = Load(2, 8, 3)
    together = Ran([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]], 0.1, 2**20)
    after_another = Ran([[0.0, 1.0, 1.1, 1.2], [0.0, 2.0, 2.1, 2.2]], 0.1, 2**20)
    assert rate(load, [together]) == 2 and math.isnan(rate(load, [together, after_another]))
    machine = Machine("machine", 2, read_bytes_per_second=1e10, float_ops_per_second=1e11)
    sides = tuple(
        Figures(peer, form, "1", (decoding_of(load, [ran]),), (), 2**20, (0.1,))
        for peer, form, ran in (("actorllm", "int8", together), ("llama-cpp", "Q8_0", after_another), ("openvino", "int8", together))
    )
    report = Report("", "1b", 8, 3, (machine,), sides)
    assert "| llama-cpp Q8_0 |  |" in table(report) and "| ratio to the best peer, 8 bits | 1.00 |" in table(report)
    assert [side["decoding"][0]["tokens_per_second"] for side in json.loads(as_json(report))["sides"]] == [2, None, 2]
