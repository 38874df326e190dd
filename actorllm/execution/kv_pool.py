"""The device's memory for keys and values: pools of single-token slots, and the tables that say who uses which.

A slot is an int that the scheduler hands out; here it is a row of every buffer of its group. Knows no sequence,
no request, and nothing of what the buffers mean.

Legend: N slots of a group's pool, R device rows, C context length.
"""

import mmap
from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

from actorllm.models.contract import CacheGroup
from actorllm_kernels.token_ids import enter_slots


class KVPool:
    """The buffers of all cache groups of one rank; `num_slots[g]` is the size of group g's pool, and groups of states, which
    come after those of slots, have one for each of `num_rows` device rows.

    Slots are of `kv_dtype`, int8 or float8_e4m3fn with scales beside them, or bfloat16, or of the model's own `dtype` (None). Implements
    `actorllm.layers.batch.KVCache`. Memory starts as zeros, which the operating system of a CPU hands out only as slots are written to.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        num_slots: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        kv_dtype: torch.dtype | None = None,
        num_rows: int = 0,
    ) -> None:
        num_states = sum(group.is_state for group in groups)
        assert not any(group.is_state for group in groups[: len(groups) - num_states]), "groups of states come last"
        self._states = range(len(groups) - num_states, len(groups))
        self._buffers: dict[tuple[int, int, str], Tensor] = {}
        self._scales: dict[tuple[int, int, str], Tensor] = {}
        for index, (group, size) in enumerate(zip(groups, [*num_slots, *[num_rows] * num_states], strict=True)):
            for layer, buffer in product(group.layers, group.buffers):
                key = index, layer, buffer.name
                kept = dtype if kv_dtype is None or buffer.is_exact or group.is_state else kv_dtype
                self._buffers[key] = _zeros(size, *buffer.shape, dtype=kept, device=device)
                if kept.itemsize == 1:
                    self._scales[key] = _zeros(size, *buffer.scale_shape, dtype=torch.float32, device=device)

    def buffer(self, group: int, layer: int, name: str) -> Tensor:
        """[N, *shape] buffer `name` of model layer `layer` in cache group `group`."""
        return self._buffers[group, layer, name]

    def scales(self, group: int, layer: int, name: str) -> Tensor | None:
        """[N, *scale_shape] float32 scales of that buffer, or None."""
        return self._scales.get((group, layer, name))

    def tensors(self, group: int) -> list[Tensor]:
        """All memory of the group."""
        return [tensor for kept in (self._buffers, self._scales) for (owner, _, _), tensor in kept.items() if owner == group]

    def copy_states(self, source: int, target: int) -> None:
        """Device row `target` goes on from the states of row `source`."""
        for group in self._states:
            for states in self.tensors(group):
                states[target] = states[source]

    def num_bytes(self) -> int:
        """Bytes of all buffers and scales."""
        return sum(tensor.nbytes for kept in (self._buffers, self._scales) for tensor in kept.values())


class SlotTables:
    """For each cache group a table [R, C] int32: the slot of each position of each device row's sequence."""

    def __init__(self, num_groups: int, *, num_rows: int, context: int, device: torch.device) -> None:
        self.tables = tuple(torch.zeros(num_rows, context, dtype=torch.int32, device=device) for _ in range(num_groups))

    def open(self, row: int, starts: Sequence[int], slots: Sequence[Tensor]) -> None:
        """A sequence takes `row` with the slots it shares: group g's from position `starts[g]` on."""
        for table, start, shared in zip(self.tables, starts, slots, strict=True):
            if len(shared):
                table[row, start : start + len(shared)] = shared

    def write(self, rows_T: Tensor, columns_T: Tensor, slots_T: Sequence[Tensor]) -> None:
        """The tokens of a batch take their slots, each at its place in the sequence of its row."""
        for table, slots in zip(self.tables, slots_T, strict=True):
            enter_slots(table, rows_T, columns_T, slots)


def _zeros(*sizes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.zeros`, which would write to all of it at once."""
    num_bytes = prod(sizes) * dtype.itemsize
    if device.type != "cpu" or not num_bytes:
        return torch.zeros(sizes, dtype=dtype, device=device)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(sizes)
