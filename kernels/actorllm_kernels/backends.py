"""Which kinds of kernels can run here."""

import functools
import importlib.metadata
import importlib.util
import logging
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

OLDEST_TRITON = 3, 6
"""Torch 2.11 brings it; tests run with it and with 3.9."""


class Heads(NamedTuple):
    """What kernels of attention are checked for: the sizes of a head's key and of its value, and the dtype they compute with."""

    key_size: int
    value_size: int
    dtype: torch.dtype


@functools.cache
def is_triton_here() -> bool:
    """Whether the package is installed, and new enough, else with a warning: torch brings it where it is made for GPUs."""
    if importlib.util.find_spec("triton") is None:
        return False
    version = triton_version()
    is_old = version is not None and tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON
    if is_old:
        logger.warning("Triton %s is older than %d.%d: slower references run instead of its kernels", version, *OLDEST_TRITON)
    return not is_old


def triton_version() -> str | None:
    """The installed one, without importing it; None if nobody says. Nightly builds have another name."""
    for name in ("triton", "pytorch-triton"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def takes_triton(operator: str, x: Tensor, heads: Heads | None = None) -> bool:
    """Whether the Triton kernels of `operator` are what computes with this tensor: on a GPU where they are right, for such heads."""
    if not x.is_cuda or not is_triton_here():
        return False
    from actorllm_kernels.self_check import is_right  # Triton takes a second to import, and is not there without a GPU

    return is_right(operator, x.device, heads)
