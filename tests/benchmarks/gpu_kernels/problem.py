"""One case: a kernel with its inputs, and the machine that it is tried on."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from actorllm_kernels.backends import is_triton_here

REHEARSAL = "--rehearse" in sys.argv
"""Small sizes in Triton's interpreter, which Triton has to know before it is imported."""
if REHEARSAL:
    os.environ["TRITON_INTERPRET"] = "1"

IS_POSSIBLE = is_triton_here() and (REHEARSAL or torch.cuda.is_available())
DEVICE = torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)
BF16 = torch.bfloat16


LARGEST_ERROR = 0.02


@dataclass
class Problem:
    """What to run (launches), what it gave and should have given, the least it must do, and what makes a rival of torch's.

    `largest_share` of a result's integers may differ: of tokens drawn at random, at edges that round otherwise.
    """

    launches: Sequence
    results: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    num_bytes: int
    num_operations: int = 0
    rival: Callable[[], Callable[[], object]] | None = None
    largest_share: float = 0

    def check(self) -> tuple[float, str]:
        """The error of what was run (relative, by the norm; of integers the share that differs), and what is wrong, if anything."""
        got, expected = self.results()
        if not expected.is_floating_point():
            share = (got[: len(expected)] != expected).float().mean().item()
            return share, "differs from the reference" if share > self.largest_share else ""
        error = ((got[: len(expected)].float() - expected).norm() / expected.norm()).item()
        if not torch.isfinite(got).all():
            return error, "something was not written, or is not finite"
        return error, "" if error <= LARGEST_ERROR else "differs from the reference"

    def is_right(self) -> bool:
        """Whether what was run gave what it should."""
        return not self.check()[1]


def random(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE, dtype=torch.float32).to(dtype)


def num_bytes(*tensors: torch.Tensor | None) -> int:
    return sum(each.numel() * each.element_size() for each in tensors if each is not None)
