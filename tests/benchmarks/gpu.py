"""Every Triton kernel on the GPU that is here:

    python tests/benchmarks/gpu.py [--tune [--tune-minutes 20]] [--out FOLDER] [--minutes 7.5] [--rehearse]

Each kernel is compared with its reference in float32 (all that it gave, row by row) and timed against its floor: the bytes it must
move over the bandwidth of a large copy, or its operations over the rate of a large matrix product, in bfloat16 or in 8-bit floats where
it computes in those, all measured in the same run. Beside it stand torch's operators for the same; of attention the table names the
backend: flash, and another one only where flash cannot do it. A failure is a row of the table and stops nothing, not even a
kernel that hangs or breaks the GPU's context: the cases run in a process that is replaced then. Writes gpu.json and gpu.svg. `--tune`
first looks for faster ways to cut the kernels, in minutes of its own, and keeps them for later starts; run again it goes on with those
that it had not come to, and last with those that hung or broke the context. `--rehearse` runs small sizes in Triton's interpreter, to try this
file without a GPU: every case there is.

How long it takes: the largest cases move 2 GB, or do 2 TFLOP, which takes a few milliseconds on the GPUs that are meant, and
a case runs fewer than 50 times, its rival included: 20 s in all. What counts is compiling, 2 s for those of a case's one to three kernels
that were not compiled before, and making its inputs and the reference's results, 1 s: 5 minutes. `--minutes` ends it in any case.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from gpu_kernels.arguments import parsed
from gpu_kernels.problem import DEVICE, MISSING, REHEARSAL, Problem, normal

if MISSING:
    parsed(__doc__)  # for --help, and mistakes
    said = f"gpu.py: {MISSING}: nothing to measure"
    if len(sys.argv) > 1:
        sys.exit(said)
    print(said)  # among all benchmarks that is no failure
    sys.exit()

import torch
import triton
from gpu_kernels.around import around_cases
from gpu_kernels.attention import attention_cases
from gpu_kernels.products import product_cases
from gpu_kernels.report import HEAD, Row, line, plot
from gpu_kernels.sampling import sampling_cases
from gpu_kernels.supervised import LOST, Limits, supervise, tell
from gpu_kernels.tuned import in_turn, left_to_tune, tuned_cases
from torch.nn.attention import SDPBackend, sdpa_kernel

from actorllm_kernels import tuning
from actorllm_kernels.candidates import candidates
from actorllm_kernels.configurations import read, user_file
from actorllm_kernels.launch import Launch


@dataclass
class Ceilings:
    """Bytes and operations a second; None where the GPU, or torch, has no products of 8-bit floats."""

    copy: float
    product: float
    product_fp8: float | None


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
    a, b = normal(side, side), normal(side, side, seed=1)
    product = 2 * side**3 / seconds(partial(torch.mm, a, b, out=torch.empty_like(a)))
    return Ceilings(copy, product, fp8_rate(a, b))


def fp8_rate(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """Of torch's product of 8-bit floats."""
    a8, b8, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t(), torch.ones((), device=a.device)
    try:
        return 2 * len(a) ** 3 / seconds(partial(torch._scaled_mm, a8, b8, one, one, out_dtype=torch.bfloat16))
    except (RuntimeError, ValueError, AttributeError) as error:
        print(f"no rate of 8-bit products: {error}".splitlines()[0], file=sys.stderr)
        return None


def measured(case: str, make: Callable[..., Problem], limits: Ceilings) -> Row:
    """The row of one case, whatever happens to it."""
    row = Row(case)
    try:
        problem = make()
        for launch in problem.launches:
            launch.run()
        row.error, row.failure = problem.check()
        rate = limits.product_fp8 if problem.is_fp8 and limits.product_fp8 else limits.product
        by_bytes, by_operations = problem.num_bytes / limits.copy, problem.num_operations / rate
        row.floor, row.bound = max(by_bytes, by_operations) * 1e6, "bytes" if by_bytes > by_operations else "operations"
        row.taken = seconds(problem.launches) * 1e6
        row.share = row.floor / row.taken
        if problem.rival is not None:
            taken, row.rival_name = rival_seconds(problem.rival(), is_attention=problem.is_attention)
            row.rival = taken * 1e6
    except Exception as error:  # boundary: one failing kernel does not stop the rest
        row.failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row


def rival_seconds(work: Callable[[], object], *, is_attention: bool) -> tuple[float, str]:
    """Of torch's operators, and their name: of attention the backend, flash where that can be timed."""
    if not is_attention:
        return seconds(work), "operators"
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                return seconds(work), name.removesuffix("_ATTENTION").lower()
        except RuntimeError:  # the backend does not take these shapes, or is not there
            continue
    with sdpa_kernel(SDPBackend.MATH):
        return seconds(work), "math"


def tune() -> None:
    """Look for faster ways to cut every kernel that has a choice, and keep them in the user's cache."""
    left = left_to_tune(tuned_cases(), known=read(user_file()))
    for case in in_turn(left, note=user_file().with_name("tuning.txt")):
        best = tuning.tune(case.key, candidates(case.key), case.make, measure=seconds)
        print(f"{case.key.kernel} {dict(case.key.shape)}: {best}", flush=True)
        if not REHEARSAL and is_lost():
            sys.exit(LOST)


def look_for_faster(command: Sequence[str], *, minutes: float) -> None:
    """Tune in a process of its own, which may be lost; what it had found by then is kept."""
    try:
        code = subprocess.run([*command, "tune"], check=False, timeout=minutes * 60).returncode
        if code:
            print(f"tuning ended with {code} before it had come to every kernel: run again it goes on, and comes to this one last", flush=True)
    except subprocess.TimeoutExpired:
        print(f"tuning was ended after {minutes:g} minutes: kernels that it had not come to stay as they were cut; run again it goes on", flush=True)


def cases() -> list[tuple[str, Callable[..., Problem]]]:
    return [*attention_cases(), *around_cases(), *product_cases(), *sampling_cases()]


def measure_from(first: int) -> None:
    """Tell the ceilings, and the rows of the cases from `first` on as long as the GPU answers."""
    limits = ceilings()
    name = "the interpreter" if REHEARSAL else torch.cuda.get_device_name(DEVICE)
    tell({"gpu": name, "torch": torch.__version__, "triton": triton.__version__, "ceilings": asdict(limits)})
    for case, make in cases()[first:]:
        row = measured(case, make, limits)
        tell(row)
        if not REHEARSAL and is_lost():
            sys.exit(LOST)


def is_lost() -> bool:
    """Whether this process can use the GPU no more, as after an access to memory that is not there."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def main() -> None:
    arguments = parsed(__doc__)
    if arguments.part:
        return tune() if arguments.part[0] == "tune" else measure_from(int(arguments.part[1]))
    command = [sys.executable, __file__, *(["--rehearse"] if REHEARSAL else []), "--part"]
    if arguments.tune:
        look_for_faster(command, minutes=arguments.tune_minutes)
    limits = Limits(case=600 if REHEARSAL else 90, total=arguments.minutes * 60)
    print(HEAD, flush=True)
    names = [case for case, _ in cases()]
    record = supervise([*command, "from"], names, limits=limits, on_row=lambda row: print(line(row), flush=True))
    if record.header is None:
        sys.exit("gpu.py: nothing could be measured, not even a copy")
    copy, product, product_fp8 = (record.header["ceilings"][name] for name in ("copy", "product", "product_fp8"))
    rates = f"bf16 {product / 1e12:.1f} TFLOP/s" + (f", fp8 {product_fp8 / 1e12:.1f}" if product_fp8 else "")
    print(f"{record.header['gpu']}, torch {torch.__version__}: copy {copy / 1e9:.0f} GB/s, products {rates}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [asdict(row) for row in record.rows]
    (arguments.out / "gpu.json").write_text(json.dumps(record.header | {"rows": rows}, indent=1) + "\n")
    (arguments.out / "gpu.svg").write_text(plot(record.rows))
    sys.exit(any(row.failure for row in record.rows))


if __name__ == "__main__":
    main()
