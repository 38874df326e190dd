"""The benchmark of GPU kernels runs from end to end in Triton's interpreter, so that a first run on a GPU is not its first."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")


@pytest.mark.timeout(600)
def test_rehearsal(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "tests/benchmarks/gpu.py", "--rehearse", "--minutes", "60", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    cases = [row["case"] for row in rows]
    for kernel in ("decode", "prefill"):
        for kind in ("int8", "fp8", "fp16", "window", "soft cap", "sinks", "ALiBi", "latent 512+64, 16", "heads of 80", "heads of 96"):
            kind = kind.replace("64, 16", "64, 128") if kernel == "decode" else kind
            assert any(case.startswith(kernel) and kind in case for case in cases), (kernel, kind)
    for kind in (
        "sum and RMS", "sum and layer", "silu", "gelu", "rotate and store", "latents, float8", "embedding", "sampled ids", "weights of 8 bits",
        "256 rows", "expand 128 x 96",
        "in groups of 32", "in groups of 128", "96, fp8", "choose 8 of", "2 of 8 experts", "experts, 64 x 32, int4", "top-p", "min-p", "penalties",
        "bias and bans", "count",
    ):  # fmt: skip
        assert any(kind in case for case in cases), kind
    assert {row["rival_name"] for row in rows if row["case"].startswith("prefill") and row["rival"]} == {"flash"}
    assert all(row["failure"] == "" and 0 <= row["error"] < 0.02 and row["taken"] > 0 for row in rows)
    assert (tmp_path / "gpu.svg").read_text().count("<rect") == len(rows) + 1


def test_a_failing_kernel_does_not_stop_the_rest(repository: Path) -> None:
    code = (
        "import sys; sys.argv = ['gpu.py', '--rehearse', '--part', 'from', '0']\n"
        "sys.path.insert(0, 'tests/benchmarks'); import gpu\n"
        "norm = next(gpu.around_cases())\n"
        "def fails(): raise RuntimeError('out of resources')\n"
        "gpu.cases = lambda: [('broken', fails), norm]\n"
        "gpu.main()"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    header, broken, norm = map(json.loads, filter(None, run.stdout.splitlines()))
    assert header["header"]["ceilings"]["copy"] > 0
    assert broken["row"]["failure"] == "RuntimeError: out of resources" and broken["row"]["taken"] is None
    assert norm["row"]["failure"] == "" and norm["row"]["taken"] > 0


def test_tuning_ends_in_time(repository: Path) -> None:
    code = (
        "import sys; sys.argv = ['gpu.py', '--rehearse']; sys.path.insert(0, 'tests/benchmarks'); import gpu\n"
        "gpu.look_for_faster([sys.executable, '-c', 'import time; time.sleep(600)'], minutes=0.001)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "tuning was ended after 0.001 minutes" in run.stdout, run.stderr[-2000:]


def test_tuning_goes_on_with_what_is_not_tuned_yet(repository: Path, tmp_path: Path) -> None:
    """And takes one key of each kernel in turn."""
    code = (
        "import sys; sys.argv = ['gpu.py', '--rehearse', '--part', 'tune']; sys.path.insert(0, 'tests/benchmarks'); import gpu\n"
        "from gpu_kernels.tuned import tuned_around\n"
        "from actorllm_kernels.configurations import configuration\n"
        "gpu.candidates = lambda key: [configuration(key)]\n"
        "gpu.tuned_cases = lambda: sorted(tuned_around(), key=lambda case: case.key.kernel)[:{}]\n"
        "gpu.main()"
    )

    def kernels(most: int) -> list[str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        command = [sys.executable, "-W", "ignore", "-c", code.format(most)]
        run = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        return [line.split()[0] for line in run.stdout.splitlines()]

    assert kernels(2) == ["embedding", "gated"]
    assert kernels(9) == ["norm", "rotary_store", "rotary_store"]
    assert kernels(9) == []


def test_tuning_comes_last_to_what_it_was_lost_at(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next run would hang at the same kernel."""
    monkeypatch.syspath_prepend(str(repository / "tests" / "benchmarks"))
    tuned = importlib.import_module("gpu_kernels.tuned")
    cases = [tuned.Tuned(tuned.Key(name, (), "sm_90", "3.9.0"), make=lambda _: None) for name in "abcd"]

    def names(*, lost_at: str = "") -> str:
        seen = ""
        for case in tuned.in_turn(cases, note=tmp_path / "note"):
            seen += case.key.kernel
            if case.key.kernel == lost_at:
                break
        return seen

    assert (names(lost_at="b"), names(lost_at="c"), names(lost_at="b")) == ("ab", "ac", "adb")
    assert (names(), names()) == ("adcb", "abcd")


def test_a_tuning_process_that_fails_is_told(repository: Path) -> None:
    code = (
        "import sys; sys.argv = ['gpu.py', '--rehearse']; sys.path.insert(0, 'tests/benchmarks'); import gpu\n"
        "gpu.look_for_faster([sys.executable, '-c', 'import sys; sys.exit(3)'], minutes=1)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "tuning ended with 3" in run.stdout, run.stderr[-2000:]


def test_what_cannot_be_measured_is_told(repository: Path, tmp_path: Path) -> None:
    def ask(*options: str, **variables: str) -> tuple[int, str]:
        command = [sys.executable, "-W", "ignore", "tests/benchmarks/gpu.py", *options]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | variables
        run = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
        return run.returncode, run.stdout + run.stderr

    assert ask() == (0, "gpu.py: no GPU is here (--rehearse tries small sizes without one): nothing to measure\n"), "as `make bench` asks"
    assert ask("--tune")[0] == 1 and "no GPU is here" in ask("--minutes", "3")[1]
    assert ask("--help")[0] == 0 and "--tune-minutes" in ask("--help")[1]
    assert ask("--tunes")[0] == 2
    code, said = ask("--rehearse", "--tune")
    assert code == 2 and "--rehearse has none" in said
    (tmp_path / "triton.py").write_text("raise ImportError")
    assert "no Triton from 3.6 on is here" in ask("--rehearse", PYTHONPATH=str(tmp_path))[1]


def test_a_neighbour_of_the_right_token_is_a_failure(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "tests" / "benchmarks"))
    problem = importlib.import_module("gpu_kernels.problem").Problem
    wanted = torch.arange(1000, 1100)

    def failure(num_wrong: int, **options) -> str:
        got = wanted + (torch.arange(100) < num_wrong)
        return problem([], lambda: [(wanted, wanted), (got, wanted)], 0, **options).check()[1]

    assert (failure(1), failure(3, largest_share=0.02)) == ("1 of 100 differ", "3 of 100 differ")
    assert failure(0) == failure(2, largest_share=0.02) == ""
    logits = wanted.float()
    assert problem([], lambda: [(logits * 1.01, logits)], 0).is_right()
    assert not problem([], lambda: [(logits * torch.nan, logits)], 0).is_right()
    assert not problem([], lambda: [(logits[:50], logits)], 0).is_right(), "not all of it was given"


def test_keys_before_the_window_are_not_in_the_floor(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's keys are read from the first one that its first query sees."""
    monkeypatch.syspath_prepend(str(repository / "tests" / "benchmarks"))
    attention, problem = (importlib.import_module(f"gpu_kernels.{name}") for name in ("attention", "problem"))
    for module in (attention, problem):
        monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))

    def taken(**options) -> int:
        return attention.attention_problem([(1, 40), (1, 8), (5, 30)], (2, 2), 16, **options).num_bytes

    of_a_slot = 2 * 2 * 16 * 2
    assert taken() - taken(window=10) == (30 + 16) * of_a_slot
    assert taken(window=100) == taken()
    assert taken(form=torch.int8) - taken(form=torch.int8, window=10) == (30 + 16) * (of_a_slot // 2 + 2 * 2 * 4)


def test_one_wrong_row_of_many_is_a_failure(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "tests" / "benchmarks"))
    problem = importlib.import_module("gpu_kernels.problem").Problem
    wanted = torch.randn(80, 100, 16, generator=torch.Generator().manual_seed(1))
    got = wanted.clone()
    got[70, 90] = 0
    error, failure = problem([], lambda: [(got, wanted)], 0).check()
    assert error < 0.0125 and failure.startswith("a value is off by 0.")


CHILD = """
import os, sys, time
sys.path.insert(0, "tests/benchmarks")
from gpu_kernels.report import Row
from gpu_kernels.supervised import LOST, tell
tell({"gpu": "a GPU"})
for name in sys.argv[1].split()[int(sys.argv[2]):]:
    if name == "dies": os._exit(7)
    if name == "hangs": time.sleep(600)
    while name == "chatters": print("still here", flush=True)
    if name == "ends": sys.exit()
    if name == "prints": print("7\\nx = 3, y = [\\n[]\\n{}\\n{\\"a\\": 1}\\npid (0, 0, 0)", end="", flush=True)
    tell(Row(name, taken=1.0, failure="broke the GPU" if name == "breaks" else ""))
    if name == "breaks": sys.exit(LOST)
"""


@pytest.fixture
def supervised(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(repository / "tests" / "benchmarks"))
    monkeypatch.chdir(repository)
    module = importlib.import_module("gpu_kernels.supervised")

    def failures(names: str, *, case: float = 300, total: float = 300) -> tuple[dict | None, list[tuple[str, str]]]:
        told = []
        limits = module.Limits(case, total)
        record = module.supervise([sys.executable, "-c", CHILD, names], names.split(), limits=limits, on_row=told.append)
        assert told == record.rows
        return record.header, [(row.case, row.failure) for row in told]

    return failures


def test_a_process_that_ends_costs_its_own_case_only(supervised) -> None:
    header, rows = supervised("one dies two breaks three dies dies")
    ended = "its process ended with 7"
    assert header == {"gpu": "a GPU"}
    assert rows == [
        ("one", ""), ("dies", ended), ("two", ""), ("breaks", "broke the GPU"), ("three", ""), ("dies", ended), ("dies", ended),
    ]  # fmt: skip


def test_what_a_kernel_prints_goes_to_stderr(supervised, capfd) -> None:
    assert supervised("one prints two")[1] == [("one", ""), ("prints", ""), ("two", "")]
    assert 'x = 3, y = [\n[]\n{}\n{"a": 1}\npid (0, 0, 0)\n' in capfd.readouterr().err


def test_where_no_kernel_prints_nothing_goes_to_stderr(supervised, capfd) -> None:
    assert supervised("one two")[1] == [("one", ""), ("two", "")]
    assert capfd.readouterr().err == ""


def test_a_process_that_hangs_is_ended(supervised) -> None:
    assert supervised("hangs", case=0.01)[1] == [("hangs", "ended after 0 s")]
    assert supervised("one two", total=0)[1] == [("one", "not reached in time")], "nobody got as far as the machine's header"


@pytest.mark.parametrize(("limits", "failure"), [({"case": 1}, "ended after 1 s"), ({"total": 1}, "not reached in time")])
def test_a_process_that_hangs_and_prints_is_ended(supervised, limits, failure) -> None:
    """Also where its lines come faster than they are read."""
    assert supervised("chatters", **limits)[1] == [("chatters", failure)]


def test_a_process_that_tells_nothing_is_not_asked_again(supervised) -> None:
    assert supervised("ends")[1] == [("ends", "its process told nothing")]


def test_every_kernel_with_configurations_is_tuned(repository: Path) -> None:
    """And what is timed for a candidate can be made."""
    code = (
        "import sys, json; sys.argv = ['gpu.py', '--rehearse']; sys.path.insert(0, 'tests/benchmarks')\n"
        "from gpu_kernels.tuned import left_to_tune, tuned_cases\n"
        "from actorllm_kernels.candidates import CHOICES, candidates\n"
        "from actorllm_kernels.configurations import SHIPPED, read\n"
        "cases = list(tuned_cases())\n"
        "known = {key.kernel: {name for name, _ in key.shape} for key in read(SHIPPED)}\n"
        "assert {case.key.kernel: {name for name, _ in case.key.shape} for case in cases} == known\n"
        "assert CHOICES.keys() == known.keys()\n"
        "turns = [each.key.kernel for each in left_to_tune(cases, known=())]\n"
        "assert {*turns[:len(known)]} == known.keys() and sorted(turns) == sorted(each.key.kernel for each in cases)\n"
        "assert all(case.make([*candidates(case.key)][-1]).launches for case in {each.key.kernel: each for each in cases}.values())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
