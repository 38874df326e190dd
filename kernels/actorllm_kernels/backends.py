"""Which kinds of kernels can run here."""

import functools
import importlib.util

from torch import Tensor


@functools.cache
def is_triton_here() -> bool:
    """Whether the package is installed: torch brings it where it is made for GPUs."""
    return importlib.util.find_spec("triton") is not None


def takes_triton(operator: str, x: Tensor) -> bool:
    """Whether the Triton kernels of `operator` are what computes with this tensor: on a GPU where they are right."""
    if not x.is_cuda or not is_triton_here():
        return False
    from actorllm_kernels.self_check import is_right  # Triton takes a second to import, and is not there without a GPU

    return is_right(operator, x.device)
