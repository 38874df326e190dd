"""Finds the fastest way to cut a kernel on the GPU that is here, and keeps it for later starts. Knows no kernel."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

from actorllm_kernels.configurations import Configuration, Key, store
from actorllm_kernels.launch import Launch

logger = logging.getLogger(__name__)


class Attempt(Protocol):
    """A kernel cut in one way."""

    @property
    def launches(self) -> Sequence[Launch]:
        """What to run, in order."""
        ...

    def is_right(self) -> bool:
        """Whether the launches, which have run once, gave what the kernel's reference gives."""
        ...


def tune(
    key: Key,
    tried: Iterable[Configuration],
    make: Callable[[Configuration], Attempt],
    *,
    measure: Callable[[Sequence[Launch]], float],
) -> Configuration | None:
    """The candidate whose launches take the least time by `measure`, stored under `key`; None if none of those `tried` can run.

    A candidate that needs more than the GPU has, that does not compile, or whose results are wrong, is left out.
    """
    best, least = None, math.inf
    for candidate in tried:
        try:
            attempt = make(candidate)
            for launch in attempt.launches:
                launch.run()
            taken = measure(attempt.launches) if attempt.is_right() else None
        except Exception as error:  # boundary: a compiler that refuses one way of many
            logger.info("%s cannot be cut as %s: %r", key.kernel, candidate, error)
            continue
        if taken is None:
            logger.warning("%s gives wrong results when it is cut as %s", key.kernel, candidate)
        elif taken < least:
            best, least = candidate, taken
    if best is not None:
        store(key, best)
    return best


def seconds_on_gpu(launches: Sequence[Launch], *, repeats: int = 20) -> float:
    """The median time of the launches one after the other, replayed from a graph: the host's part is left out."""
    for launch in launches:
        launch.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch.run()
    return replayed_seconds(graph, repeats=repeats)


def replayed_seconds(graph: "torch.cuda.CUDAGraph", *, repeats: int) -> float:
    """The median time of one replay."""
    graph.replay()
    starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(repeats)] for _ in range(2))
    for start, end in zip(starts, ends, strict=True):
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True))
    return times[repeats // 2] / 1000
