"""The flat batch that one step computes, as layers see it.

Rows of different requests, prefill chunks and single decode tokens, lie one after another without padding.
Legend: T tokens of the batch, R rows (sequences) in it, G cache groups, N slots of a group's pool.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from actorllm_kernels.attention import Span


class KVCache(Protocol):
    """The device's token-slot pools, as attention layers see them."""

    def buffer(self, group: int, layer: int, name: str) -> Tensor:
        """[N, *shape] buffer `name` of model layer `layer` in cache group `group`."""
        ...

    def scales(self, group: int, layer: int, name: str) -> Tensor | None:
        """[N, *scale_shape] float32: the scales of that buffer's int8 or fp8 values; None where values are stored as they are."""
        ...


@dataclass(frozen=True, slots=True)
class GivenEmbeddings:
    """Embeddings that stand for the tokens `[start, start + n)` of the flat batch, in place of their ids' (images)."""

    start: int
    values_TD: Tensor


@dataclass(slots=True)
class Batch:
    """One step's inputs on one device.

    `rows_T` is each token's row of the slot tables. `write_slots_T[g]` are the slots that this batch's tokens take in group g; `slot_tables[g]` is
    [num_rows, context] int32, of which row `span.row`, columns `[0, span.seq_len)` are valid (behind a
    window they may be stale), the batch's own tokens included. `spans_B4` are the spans as int32 on the device
    (row, start, query_len, seq_len), which kernels read. `tables` is whatever `model.prepare` returned; `keys`
    is where attention layers keep, per cache group, what all layers of the step share.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    rows_T: Tensor
    spans: tuple[Span, ...]
    write_slots_T: tuple[Tensor, ...]
    slot_tables: tuple[Tensor, ...]
    cache: KVCache
    given: tuple[GivenEmbeddings, ...] = ()
    spans_B4: Tensor | None = None
    tables: Any = None
    keys: dict[int, Any] = field(default_factory=dict)
