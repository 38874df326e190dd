"""Which kinds of kernels can run here."""

import functools
import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor


class Heads(NamedTuple):
    """What kernels of attention are checked for: the sizes of a head's key and of its value, and the dtype they compute with."""

    key_size: int
    value_size: int
    dtype: torch.dtype


@functools.cache
def is_triton_here() -> bool:
    """Whether the package is installed: torch brings it where it is made for GPUs."""
    return importlib.util.find_spec("triton") is not None


def takes_triton(operator: str, x: Tensor, heads: Heads | None = None) -> bool:
    """Whether the Triton kernels of `operator` are what computes with this tensor: on a GPU where they are right, for such heads."""
    if not x.is_cuda or not is_triton_here():
        return False
    from actorllm_kernels.self_check import is_right  # Triton takes a second to import, and is not there without a GPU

    return is_right(operator, x.device, heads)
