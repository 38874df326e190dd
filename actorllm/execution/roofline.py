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
    probes = Probes()
    return Machine(
        name=_processor(),
        num_threads=num_threads,
        read_bytes_per_second=max(probes.read_rate() for _ in range(REPEATS)),
        float_ops_per_second=max(probes.product_rate() for _ in range(REPEATS)),
    )


class Probes:
    """One run each, with the calling thread's number of threads, for who measures something else in turns with them."""

    def __init__(self) -> None:
        self._halves = torch.ones(2, READ_BYTES // 8)
        self._square = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE)

    def read_rate(self) -> float:
        """Bytes a second, by a product of two vectors: torch's reductions of one reach half to nine tenths of that."""
        return READ_BYTES / _seconds(lambda: torch.dot(self._halves[0], self._halves[1]))

    def product_rate(self) -> float:
        """Float32 operations a second."""
        return 2 * PRODUCT_SIZE**3 / _seconds(lambda: self._square @ self._square)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
