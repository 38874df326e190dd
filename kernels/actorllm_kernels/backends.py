"""Which kinds of kernels can run here."""

import functools
import importlib
import importlib.metadata
import logging
import re
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

OLDEST_TRITON = 3, 6
"""Torch 2.11 brings it; tests run with it and with 3.9."""


class Heads(NamedTuple):
    """A form of attention and of storing: query heads and key/value heads, the sizes of a head's key and of its value, the dtype
    of pools of one byte a value (None: pools are in the queries' dtype), and which of `EXTRAS` scores are made with."""

    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    quantized: torch.dtype | None = None
    extras: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """As warnings name it."""
        sizes = f"{self.num_heads}:{self.num_kv_heads} heads of {self.key_size} and {self.value_size}"
        kept = f" kept in {self.quantized}" if self.quantized else ""
        return sizes + kept + (f" with {', '.join(sorted(self.extras))}" if self.extras else "")


class Sizes(NamedTuple):
    """What a model is served with, as far as kernels are compiled or cut by it: the most rows of a batch (and of a slot table),
    the most tokens of a row (a slot table's width), attention's windows, the sizes of norms, and the vocabulary's."""

    rows: int
    context: int
    windows: frozenset[int]
    norms: frozenset[int]
    vocab_size: int


USUAL_SIZES = Sizes(32, 1024, frozenset({512}), frozenset({4096}), 2100)
"""Of which is checked what nobody has told the sizes of."""
EXTRAS = frozenset({"window", "soft cap", "sinks", "slopes"})
"""What attention may have beside scaled products."""
Form = str | Heads
"""One of the kinds of work that an operator's kernels do: each is checked, and replaced, for itself."""


@functools.cache
def is_triton_here() -> bool:
    """Whether the package can be used, and is new enough; else with a warning where there is a GPU that it would be used on."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # boundary: whatever an installation that is not whole raises
        if torch.cuda.is_available():
            mend = "slower references run on the GPU; `pip install triton` brings it"
            logger.warning("Triton cannot be imported (%r): %s", error, mend)
        return False
    version = triton_version()
    numbers = re.match(r"(\d+)\.(\d+)", version or "")  # a version that is written otherwise is not known to be old
    is_old = numbers is not None and tuple(map(int, numbers.groups())) < OLDEST_TRITON
    if is_old:
        logger.warning("Triton %s is older than %d.%d: slower references run instead of its kernels", version, *OLDEST_TRITON)
    return not is_old


def triton_version() -> str | None:
    """The installed one, without importing it; None if nobody says. Nightly builds have another name."""
    for name in ("triton", "pytorch-triton"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def takes_triton(operator: str, x: Tensor, form: Form) -> bool:
    """Whether the Triton kernels of `operator` are what computes with this tensor: on a GPU where they are right in this form."""
    if not x.is_cuda or not is_triton_here():
        return False
    from actorllm_kernels.self_check import is_right  # Triton takes a second to import, and is not there without a GPU

    return is_right(operator, x.device, x.dtype, form)
