"""The benchmark of GPU kernels runs from end to end in Triton's interpreter, so that a first run on a GPU is not its first."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")


def test_rehearsal(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "tests/benchmarks/gpu.py", "--rehearse", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["case"].split()[0] for row in rows} >= {"decode", "prefill", "sum", "silu", "rotate", "16", "embedding", "sampled", "sample", "penalties"}
    assert all(row["failure"] == "" and 0 <= row["error"] < 0.02 and row["taken"] > 0 for row in rows)
    assert (tmp_path / "gpu.svg").read_text().count("<rect") == len(rows) + 1


def test_a_failing_kernel_does_not_stop_the_rest(repository: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['gpu.py', '--rehearse', '--out', sys.argv[1]]\n"
        "sys.path.insert(0, 'tests/benchmarks'); import gpu\n"
        "cases = dict(gpu.around_cases()); names = list(cases)\n"
        "def fails(): raise RuntimeError('out of resources')\n"
        "gpu.attention_cases = lambda: iter([('broken', fails)])\n"
        "gpu.around_cases, gpu.product_cases, gpu.sampling_cases = (lambda: iter([(names[0], cases[names[0]])])), *[lambda: iter(())] * 2\n"
        "gpu.main()"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr[-2000:]
    broken, norm = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert broken["failure"] == "RuntimeError: out of resources" and broken["taken"] is None
    assert norm["failure"] == "" and norm["taken"] > 0


def test_every_kernel_with_configurations_is_tuned(repository: Path) -> None:
    """And what is timed for a candidate can be made."""
    code = (
        "import sys, json; sys.argv = ['gpu.py', '--rehearse']; sys.path.insert(0, 'tests/benchmarks')\n"
        "from gpu_kernels.tuned import tuned_cases\n"
        "from actorllm_kernels.configurations import SHIPPED, read\n"
        "cases = list(tuned_cases())\n"
        "known = {key.kernel: {name for name, _ in key.shape} for key in read(SHIPPED)}\n"
        "assert {case.key.kernel: {name for name, _ in case.key.shape} for case in cases} == known\n"
        "assert all(case.make(case.candidates[0]).launches for case in {each.key.kernel: each for each in cases}.values())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
