"""What the machine could do at most: the rate at which it reads memory, and that of a large float32 product."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

READ_BYTES = 512 * 2**20
PRODUCT_SIZE = 1536
REPEATS = 5


@dataclass(frozen=True)
class Machine:
    """Bytes and float32 operations a second with `num_threads` threads, each the best of a few runs."""

    name: str
    num_threads: int
    read_bytes_per_second: float
    float_ops_per_second: float


def measure_machine(num_threads: int) -> Machine:
    """Takes a second or two, half a gigabyte, and the calling thread's number of threads."""
    torch.set_num_threads(num_threads)
    memory = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    square = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE)
    return Machine(
        name=_processor(),
        num_threads=num_threads,
        read_bytes_per_second=READ_BYTES / _best(memory.max),
        float_ops_per_second=2 * PRODUCT_SIZE**3 / _best(lambda: square @ square),
    )


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
