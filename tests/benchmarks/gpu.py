"""Every Triton kernel on the GPU that is here: `python tests/benchmarks/gpu.py [--tune] [--out FOLDER] [--minutes 8] [--rehearse]`.

Each kernel is compared with its reference in float32 and timed against its floor: the bytes it must move over the bandwidth of a
large copy, or its operations over the rate of a large matrix product, both measured in the same run; attention also
against torch's own. A failure is a row of the table and stops nothing. Writes gpu.json and gpu.svg. `--tune` first looks for faster
ways to cut the kernels, in minutes of its own. `--rehearse` runs small sizes in Triton's interpreter, to try this file without a GPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from gpu_kernels.problem import DEVICE, IS_POSSIBLE, REHEARSAL, Problem, random

if not IS_POSSIBLE:
    print("gpu.py: no GPU with Triton is here: nothing to measure")
    sys.exit()

import torch
from gpu_kernels.around import around_cases
from gpu_kernels.attention import attention_cases
from gpu_kernels.products import product_cases
from gpu_kernels.report import HEAD, Row, line, plot
from gpu_kernels.sampling import sampling_cases
from gpu_kernels.tuned import tuned_cases

from actorllm_kernels import tuning
from actorllm_kernels.launch import Launch

LARGEST_ERROR = 0.02


@dataclass
class Ceilings:
    """Bytes and operations a second."""

    copy: float
    product: float


def seconds(work: Callable[[], object] | Sequence[Launch]) -> float:
    """Of one call, or of the launches one after the other; from a replayed graph where there is a GPU."""
    launches = work if isinstance(work, Sequence) else [CallAsLaunch(work)]
    if not REHEARSAL:
        return tuning.seconds_on_gpu(launches)
    start = time.perf_counter()
    for launch in launches:
        launch.run()
    return time.perf_counter() - start


@dataclass
class CallAsLaunch:
    """A call of torch's, to be timed as a launch is."""

    run: Callable[[], object]


def ceilings() -> Ceilings:
    size, side = (2**20, 256) if REHEARSAL else (2**30, 8192)
    source, target = (torch.randint(-9, 9, (size,), dtype=torch.int8, device=DEVICE) for _ in range(2))
    copy = 2 * size / seconds(partial(target.copy_, source))
    a, b = random(side, side), random(side, side, seed=1)
    return Ceilings(copy, 2 * side**3 / seconds(partial(torch.mm, a, b, out=torch.empty_like(a))))


def measured(case: str, make: Callable[..., Problem], limits: Ceilings) -> Row:
    """The row of one case, whatever happens to it."""
    row = Row(case)
    try:
        problem = make()
        for launch in problem.launches:
            launch.run()
        got, expected = problem.results()
        row.error = ((got[: len(expected)].float() - expected).norm() / expected.norm()).item()
        if not torch.isfinite(got).all():
            row.failure = "something was not written, or is not finite"
        elif row.error > LARGEST_ERROR:
            row.failure = "differs from the reference"
        by_bytes, by_operations = problem.num_bytes / limits.copy, problem.num_operations / limits.product
        row.floor, row.bound = max(by_bytes, by_operations) * 1e6, "bytes" if by_bytes > by_operations else "operations"
        row.taken = seconds(problem.launches) * 1e6
        row.share = row.floor / row.taken
        if problem.rival is not None:
            row.rival = rival_seconds(problem.rival) * 1e6
    except Exception as error:  # boundary: one failing kernel does not stop the rest
        row.failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if not REHEARSAL:
        torch.cuda.empty_cache()
    return row


def rival_seconds(make: Callable[[], Callable[[], object]]) -> float:
    """Of torch's flash attention, or of what torch chooses where that cannot be timed."""
    work = make()
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return seconds(work)
    except RuntimeError:
        return seconds(work)


def tune() -> None:
    """Look for faster ways to cut every kernel that has a choice, and keep them in the user's cache."""
    for case in tuned_cases():
        best = tuning.tune(case.key, case.candidates, lambda chosen, case=case: case.make(chosen).launches, measure=seconds)
        print(f"{case.key.kernel} {dict(case.key.shape)}: {best}", flush=True)
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="look for faster ways to cut all kernels first, and keep them: minutes more")
    parser.add_argument("--out", type=Path, default=Path(), help="where gpu.json and gpu.svg go")
    parser.add_argument("--minutes", type=float, default=7, help="no case begins after this time")
    parser.add_argument("--rehearse", action="store_true", help="small sizes in the interpreter, without a GPU")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    name = "the interpreter" if REHEARSAL else torch.cuda.get_device_name(DEVICE)
    if arguments.tune and not REHEARSAL:
        tune()
    limits = ceilings()
    print(
        f"{name}, torch {torch.__version__}: copy {limits.copy / 1e9:.0f} GB/s, bf16 product {limits.product / 1e12:.1f} TFLOP/s"
    )
    print(HEAD, flush=True)
    rows = []
    for case, make in (*attention_cases(), *around_cases(), *product_cases(), *sampling_cases()):
        if time.perf_counter() - begin > arguments.minutes * 60:
            rows.append(Row(case, failure="not reached within --minutes"))
        else:
            rows.append(measured(case, make, limits))
        print(line(rows[-1]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"gpu": name, "torch": torch.__version__, "ceilings": asdict(limits), "rows": [asdict(row) for row in rows]}
    (arguments.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "gpu.svg").write_text(plot(rows))
    sys.exit(any(row.failure for row in rows))


if __name__ == "__main__":
    main()
