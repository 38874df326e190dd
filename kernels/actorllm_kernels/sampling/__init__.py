"""From logits to tokens, every row by its own parameters: penalties, adjustments, and the draw by seed and position.

`reference` specifies it; `cpu` is a C++ kernel for greedy rows, `triton` are the kernels for GPUs, which find the edges of top-k
and top-p without sorting. Logits are float32, and are changed in place. Legend: R device rows, S samples, V vocabulary.
"""

from types import ModuleType

from torch import Tensor

from actorllm_kernels.backends import takes_triton
from actorllm_kernels.sampling import cpu, reference
from actorllm_kernels.sampling.parameters import GREEDY_BELOW, NUM_PARAMETERS, Adjustments, Needs, Rows, Seen

__all__ = ["GREEDY_BELOW", "NUM_PARAMETERS", "Adjustments", "Needs", "Rows", "Seen", "adjust", "count", "draw", "penalize"]


def penalize(logits_SV: Tensor, rows_S: Tensor, seen: Seen, *, rows: Rows) -> None:
    """See `reference.penalize`; the fastest way there is here."""
    kernels_for(logits_SV, "penalize").penalize(logits_SV, rows_S, seen, rows=rows)


def adjust(logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor, *, adjustments: Adjustments) -> None:
    """See `reference.adjust`; the fastest way there is here."""
    kernels_for(logits_SV, "adjust").adjust(logits_SV, rows_S, positions_S, adjustments=adjustments)


def draw(logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor, *, rows: Rows, needs: Needs) -> Tensor:
    """[S] int64, see `reference.draw`; the fastest way there is here."""
    if not needs.is_random and cpu.suits(logits_SV):
        return cpu.best(logits_SV)
    kernels = kernels_for(logits_SV, "draw" if needs.is_random else "greedy")
    return kernels.draw(logits_SV, rows_S, positions_S, rows=rows, needs=needs)


def count(ids_S: Tensor, rows_S: Tensor, seen: Seen) -> None:
    """See `reference.count`; the fastest way there is here."""
    kernels_for(ids_S, "tokens", operator="counting").count(ids_S, rows_S, seen)


def kernels_for(x: Tensor, form: str, *, operator: str = "sampling") -> ModuleType:
    """The GPU's kernels if they are right here and can hold the vocabulary, else the reference."""
    if not takes_triton(operator, x, form):
        return reference
    from actorllm_kernels.sampling import triton  # takes a second, and is not there without a GPU

    return triton if triton.suits(x) else reference
