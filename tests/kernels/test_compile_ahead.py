"""Every Triton kernel compiles for GPUs of compute capability 8.0 and 9.0, without one, and fits.

`KERNEL_CASES` above its default compiles every shape, else the usual ones.
"""

import importlib.util
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

    def rows(gpu: str) -> list[dict]:
        command = [*MODULE, gpu, *options]
        run = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-4000:]
        return [json.loads(line) for line in run.stdout.splitlines()]

    with ThreadPoolExecutor() as processes:
        found = [row for found_for_gpu in processes.map(rows, GPUS) for row in found_for_gpu]
    with capsys.disabled():
        print(f"\n{'gpu':<6} {'kernel':<22} {'shapes':<44} {'registers':>9} {'spilled':>8} {'shared':>8}")
        for row in found:
            print(
                f"{row['gpu']:<6} {row['kernel']:<22} {row['case']:<44} {row['num_registers']:>9}"
                f" {row['spilled_bytes']:>8} {row['shared_bytes']:>8}"
            )
    assert {row["gpu"] for row in found} == {*GPUS}
    assert not [row for row in found if row["shared_bytes"] > row["limit"]]
    assert not [row for row in found if row["kernel"] != "prefill_kernel" and row["spilled_bytes"]]
