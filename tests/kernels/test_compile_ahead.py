"""Every Triton kernel compiles for GPUs of compute capability 8.0 and 9.0, without one, and fits.

`KERNEL_CASES` above its default compiles every shape, else the usual ones.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

GPUS = "sm_80", "sm_90"
MODULE = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_ahead"]


@pytest.mark.timeout(7200)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_compile_and_fit(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    is_whole = "KERNEL_CASES" in os.environ
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["--all"] if is_whole else []
    num_shares = max(1, len(os.sched_getaffinity(0)) // len(GPUS)) if is_whole else 1  # the few take less than the starts

    def rows(job: tuple[str, int]) -> list[dict]:
        command = [*MODULE, job[0], *options, "--share", f"{job[1]}/{num_shares}"]
        run = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-4000:]
        return [json.loads(line) for line in run.stdout.splitlines()]

    jobs = list(itertools.product(GPUS, range(num_shares)))
    with ThreadPoolExecutor(len(jobs)) as processes:
        found = [row for of_job in processes.map(rows, jobs) for row in of_job]
    found.sort(key=lambda row: (row["gpu"], row["kernel"], row["case"]))
    with capsys.disabled():
        print(f"\n{'gpu':<6} {'kernel':<22} {'shapes':<44} {'registers':>9} {'spilled':>8} {'shared':>8}")
        for row in found:
            print(
                f"{row['gpu']:<6} {row['kernel']:<22} {row['case']:<44} {row['num_registers']:>9}"
                f" {row['spilled_bytes']:>8} {row['shared_bytes']:>8}"
            )
        for gpu in GPUS:
            taken = [row["seconds"] for row in found if row["gpu"] == gpu]
            print(f"{gpu}: {len(taken)} launches, {sum(taken):.0f} s in {num_shares} processes")
    assert {row["gpu"] for row in found} == {*GPUS}
    assert not [row for row in found if row["shared_bytes"] > row["limit"]]
    assert not [row for row in found if row["kernel"] != "prefill_kernel" and row["spilled_bytes"]]
