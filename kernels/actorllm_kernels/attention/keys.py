"""Which keys each row of a flat batch reads, and what each of its queries sees of them.

Every row reads its keys and values from the pool through its slots, the current chunk's too, so chunking cannot change
a result. Legend: B rows of the batch, Q queries and L keys of one row, R rows and C columns of the slot table.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_KEYS = 16384
"""Keys that are gathered from the pool at once: enough to be one operator for many rows, few enough to stay small."""


class Span(NamedTuple):
    """One row's tokens in a flat batch: `[start, start + query_len)`, which end at `seq_len` in its sequence (so the first has
    position `seq_len - query_len`). `row` indexes the slot tables."""

    row: int
    start: int
    query_len: int
    seq_len: int


def flat_spans(entries: Iterable[tuple[int, int, int]]) -> tuple[Span, ...]:
    """The spans of entries `(row, query_len, seq_len)` that lie one after another."""
    start, spans = 0, []
    for row, query_len, seq_len in entries:
        spans.append(Span(row, start, query_len, seq_len))
        start += query_len
    return tuple(spans)


@dataclass(frozen=True, slots=True)
class RowKeys:
    """One row's `query_len` queries and `num_keys` keys; the last key belongs to the last query's position.

    `mask_QL` says which keys a query sees. Without it all queries see every key, or with `is_causal`, where the first
    key is the first query's own, those up to their own.
    """

    query_len: int
    num_keys: int
    mask_QL: Tensor | None = None
    is_causal: bool = False


@dataclass(frozen=True, slots=True)
class KeyBlock:
    """Consecutive rows whose keys are gathered together: their slots lie one row after another, without padding."""

    rows: tuple[RowKeys, ...]
    slots: Tensor

    @property
    def key_lens(self) -> list[int]:
        return [row.num_keys for row in self.rows]


@dataclass(frozen=True)
class RaggedKeys:
    """Where the keys of a flat batch lie: made once a step for all layers of a cache group.

    `spans` are in the order of the flat batch; row `span.row` of `slot_table` [R, C] int32 holds that sequence's slots. With a
    `window` W a query at position p sees keys `p - W + 1 .. p`; slots further back are not read. `given_spans_B4` is `spans_B4`
    where the caller has it already: kernels read lengths from there alone, so a step that is replayed may have others.
    """

    spans: Sequence[Span]
    slot_table: Tensor
    window: int | None = None
    given_spans_B4: Tensor | None = None

    @functools.cached_property
    def spans_B4(self) -> Tensor:
        """(row, start, query_len, seq_len) of each span as int32 beside the slot table, for the kernels."""
        if self.given_spans_B4 is not None:
            return self.given_spans_B4
        device = self.slot_table.device
        spans_B4 = torch.tensor(self.spans, dtype=torch.int32, pin_memory=device.type == "cuda").view(-1, 4)
        return spans_B4.to(device, non_blocking=True)

    @functools.cached_property
    def blocks(self) -> "tuple[KeyBlock, ...]":
        """The keys in blocks that are gathered together, for the reference."""
        return key_blocks(self.spans, self.slot_table, window=self.window)


def key_blocks(spans: Sequence[Span], slot_table: Tensor, *, window: int | None) -> tuple[KeyBlock, ...]:
    """Every row's keys and mask, consecutive rows together up to `BLOCK_KEYS`."""
    blocks: list[KeyBlock] = []
    rows: list[RowKeys] = []
    slots: list[Tensor] = []
    num_keys = 0
    for row, _, query_len, seq_len in spans:
        first_query = seq_len - query_len
        first_key = 0 if window is None else max(0, first_query - window + 1)
        if rows and num_keys + seq_len - first_key > BLOCK_KEYS:
            blocks.append(KeyBlock(tuple(rows), torch.cat(slots).to(torch.int64)))
            rows, slots, num_keys = [], [], 0
        is_whole = first_query == 0 and (window is None or seq_len <= window)
        mask = None
        if query_len > 1 and not is_whole:
            mask = causal_mask(first_query, seq_len, first_key=first_key, window=window, device=slot_table.device)
        rows.append(RowKeys(query_len, seq_len - first_key, mask, is_causal=query_len > 1 and is_whole))
        slots.append(slot_table[row, first_key:seq_len])
        num_keys += seq_len - first_key
    if rows:
        blocks.append(KeyBlock(tuple(rows), torch.cat(slots).to(torch.int64)))
    return tuple(blocks)


def causal_mask(first_query: int, seq_len: int, *, first_key: int, window: int | None, device: torch.device) -> Tensor:
    """[Q, L] bool: which of the keys `first_key .. seq_len - 1` each query `first_query .. seq_len - 1` sees."""
    query_Q1 = torch.arange(first_query, seq_len, device=device).unsqueeze(1)
    key_1L = torch.arange(first_key, seq_len, device=device).unsqueeze(0)
    seen_QL = key_1L <= query_Q1
    if window is not None:
        seen_QL &= key_1L > query_Q1 - window
    return seen_QL
