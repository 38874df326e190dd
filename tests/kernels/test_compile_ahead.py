"""Every Triton kernel compiles for GPUs of compute capability 8.0 and 9.0, without one, and fits.

With `KERNEL_CASES` it is every shape, cut by every configuration that is shipped, for 8.9 too; else the usual ones.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

GPUS = ("sm_80", "sm_89", "sm_90") if "KERNEL_CASES" in os.environ else ("sm_80", "sm_90")
MODULE = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_ahead"]


@pytest.mark.timeout(7200)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_compile_and_fit(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    is_whole = "KERNEL_CASES" in os.environ
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["--all"] if is_whole else []
    num_processes = len(os.sched_getaffinity(0))
    num_shares = max(1, num_processes // len(GPUS)) if is_whole else 1  # the few take less than the starts

    def rows(job: tuple[str, int]) -> list[dict]:
        command = [*MODULE, job[0], *options, "--share", f"{job[1]}/{num_shares}"]
        run = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-4000:]
        return [json.loads(line) for line in run.stdout.splitlines()]

    jobs = list(itertools.product(GPUS, range(num_shares)))
    with ThreadPoolExecutor(max(2, num_processes)) as processes:
        told = [row for of_job in processes.map(rows, jobs) for row in of_job]
    found, unused = [row for row in told if "kernel" in row], [row for row in told if "unused" in row]
    found.sort(key=lambda row: (row["gpu"], row["kernel"], row["case"]))
    with capsys.disabled():
        print_table(found, num_shares)
    assert {row["gpu"] for row in found} == {*GPUS}
    assert not [row for row in found if "failure" in row]
    assert not [row for row in found if row["shared_bytes"] > row["limit"]]
    may_spill = {"prefill_kernel": 64}  # a tile of half the size would cost more than a few bytes do
    assert not [row for row in found if row["spilled_bytes"] > may_spill.get(row["kernel"], 0)]
    fused = {row["kernel"] for row in found if row["num_fused"]}
    assert "penalize_kernel" not in fused and "norm_kernel" in fused, "penalties are rounded as the reference rounds them"
    assert unused == ([{"gpu": gpu, "unused": []} for gpu in GPUS] if is_whole else [])


def print_table(found: list[dict], num_shares: int) -> None:
    """To the error stream, which is seen where tests run in several processes, too."""
    say = partial(print, file=sys.stderr)
    say(f"\n{'gpu':<6} {'kernel':<20} {'shapes':<70} {'registers':>9} {'spilled':>8} {'shared':>8}")
    for row in found:
        taken = [row.get(name, "-") for name in ("num_registers", "spilled_bytes", "shared_bytes")]
        say(f"{row['gpu']:<6} {row['kernel']:<20} {row['case']:<70} {taken[0]:>9} {taken[1]:>8} {taken[2]:>8}")
    for gpu in GPUS:
        seconds = [row["seconds"] for row in found if row["gpu"] == gpu]
        say(f"{gpu}: {len(seconds)} launches, {sum(seconds):.0f} s of a processor, in {num_shares} processes")
    for row in (row for row in found if "failure" in row or row["spilled_bytes"] or row["shared_bytes"] > row["limit"]):
        say(f"{row['gpu']} {row['kernel']}, {row['case']}: {row.get('failure', 'spills, or does not fit')}")
