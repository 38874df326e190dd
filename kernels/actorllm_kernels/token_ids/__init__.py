"""Token ids that never leave the device: what one step samples by rows, the next one reads; and the tables of tokens' slots.

`reference` specifies it; `cpu` are the C++ kernels, `triton` those for GPUs. Legend: T tokens of a batch, S samples, R device
rows, C positions of a sequence.
"""

from types import ModuleType

from torch import Tensor

from actorllm_kernels.backends import takes_triton
from actorllm_kernels.token_ids import cpu, reference

__all__ = ["enter_slots", "gather_ids", "scatter_ids"]


def gather_ids(ids_T: Tensor, rows_T: Tensor, last_ids_R: Tensor) -> Tensor:
    """[T], see `reference.gather_ids`; the fastest way there is here."""
    return (cpu if cpu.suits(ids_T) else kernels_for(ids_T, "gather")).gather_ids(ids_T, rows_T, last_ids_R)


def scatter_ids(ids_S: Tensor, rows_S: Tensor, last_ids_R: Tensor) -> None:
    """See `reference.scatter_ids`; the fastest way there is here."""
    (cpu if cpu.suits(ids_S) else kernels_for(ids_S, "scatter")).scatter_ids(ids_S, rows_S, last_ids_R)


def enter_slots(table_RC: Tensor, rows_T: Tensor, columns_T: Tensor, slots_T: Tensor) -> None:
    """See `reference.enter_slots`; the fastest way there is here."""
    (cpu if cpu.suits(slots_T) else reference).enter_slots(table_RC, rows_T, columns_T, slots_T)


def kernels_for(ids: Tensor, form: str) -> ModuleType:
    """The GPU's kernels if they are right here, else the reference."""
    if not takes_triton("token_ids", ids, form):
        return reference
    from actorllm_kernels.token_ids import triton  # takes a second, and is not there without a GPU

    return triton
