"""One case: a kernel with its inputs, and the machine that it is tried on."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from actorllm_kernels.backends import OLDEST_TRITON, is_triton_here
from actorllm_kernels.comparison import ROUNDED, Tolerance, compare

REHEARSAL = "--rehearse" in sys.argv
"""Small sizes in Triton's interpreter, which Triton has to know before it is imported."""
if REHEARSAL:
    os.environ["TRITON_INTERPRET"] = "1"

MISSING = ""
"""What keeps kernels from running here, if anything does."""
if not is_triton_here():
    MISSING = f"no Triton from {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]} on is here"
elif not (REHEARSAL or torch.cuda.is_available()):
    MISSING = "no GPU is here (--rehearse tries small sizes without one)"
DEVICE = torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)
BF16 = torch.bfloat16

Pair = tuple[torch.Tensor, torch.Tensor]
"""What a kernel gave, and what it should have given in higher precision: rows along all axes but the last."""


@dataclass
class Problem:
    """What to run (launches), what came of it (all of it: nothing is sampled), the least it must do, and what makes a rival of torch's.

    `largest_share` of a result's integers may differ: of tokens drawn at random, or chosen, at edges that round otherwise. `is_fp8`
    says that its operations could be done at the rate of products of 8-bit floats; `is_attention` that the rival is torch's attention.
    `allowed`: how far a result may be off, by what it is rounded to.
    """

    launches: Sequence
    results: Callable[[], Iterable[Pair]]
    num_bytes: int
    num_operations: int = 0
    rival: Callable[[], Callable[[], object]] | None = None
    largest_share: float = 0
    is_fp8: bool = False
    is_attention: bool = False
    allowed: Tolerance = ROUNDED[BF16]

    def check(self) -> tuple[float, str]:
        """The largest error of what was run (relative, by the norm; of integers the share that differs), and what is wrong, if anything."""
        checked = [compare(*pair, self.allowed, largest_share=self.largest_share) for pair in self.results()]
        return max(error for error, _ in checked), next((failure for _, failure in checked if failure), "")

    def is_right(self) -> bool:
        """Whether what was run gave what it should."""
        return not self.check()[1]


def normal(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> torch.Tensor:
    """Values of a normal distribution, the same for each seed."""
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE, dtype=torch.float32).to(dtype)


def num_bytes(*tensors: torch.Tensor | None) -> int:
    return sum(each.numel() * each.element_size() for each in tensors if each is not None)
