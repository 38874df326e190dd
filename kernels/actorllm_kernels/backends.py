"""Which kinds of kernels can run here."""

import functools
import importlib.util

from torch import Tensor


@functools.cache
def is_triton_here() -> bool:
    """Whether the package is installed: torch brings it where it is made for GPUs."""
    return importlib.util.find_spec("triton") is not None


def takes_triton(x: Tensor) -> bool:
    """Whether Triton kernels are what computes with this tensor."""
    return x.is_cuda and is_triton_here()
