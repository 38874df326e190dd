"""The device's memory for keys and values: pools of single-token slots, and the tables that say who uses which.

A slot is an int that the scheduler hands out; here it is a row of every buffer of its group. Knows no sequence,
no request, and nothing of what the buffers mean.

Legend: N slots of a group's pool, R device rows, C context length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from actorllm.models.contract import CacheGroup


class KVPool:
    """The buffers of all cache groups of one rank; `num_slots[g]` is the size of group g's pool.

    Implements `actorllm.layers.batch.KVCache`. Memory starts as zeros, which the operating system hands out
    only as slots are written to.
    """

    def __init__(
        self, groups: Sequence[CacheGroup], num_slots: Sequence[int], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._buffers: dict[tuple[int, int, str], Tensor] = {
            (index, layer, buffer.name): torch.zeros(size, *buffer.shape, dtype=dtype, device=device)
            for index, (group, size) in enumerate(zip(groups, num_slots, strict=True))
            for layer in group.layers
            for buffer in group.buffers
        }

    def buffer(self, group: int, layer: int, name: str) -> Tensor:
        """[N, *shape] buffer `name` of model layer `layer` in cache group `group`."""
        return self._buffers[group, layer, name]

    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())


class SlotTables:
    """For each cache group a table [R, C] int32: the slot of each position of each device row's sequence."""

    def __init__(self, num_groups: int, *, num_rows: int, context: int, device: torch.device) -> None:
        self.tables = tuple(torch.zeros(num_rows, context, dtype=torch.int32, device=device) for _ in range(num_groups))

    def open(self, row: int, starts: Sequence[int], slots: Sequence[Tensor]) -> None:
        """A sequence takes `row` with the slots it shares: group g's from position `starts[g]` on."""
        for table, start, shared in zip(self.tables, starts, slots, strict=True):
            if len(shared):
                table[row, start : start + len(shared)] = shared

    def write(self, rows_T: Tensor, positions_T: Tensor, slots_T: Sequence[Tensor]) -> None:
        """The tokens of a batch take their slots."""
        for table, slots in zip(self.tables, slots_T, strict=True):
            table[rows_T, positions_T] = slots.to(torch.int32)
