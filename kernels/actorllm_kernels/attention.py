"""Attention over token slots: a flat, unpadded batch of prefill chunks and decode rows.

Every row reads its keys and values from the pool through its slots, the current chunk's too, so chunking
cannot change a result. The reference goes row by row and pads nothing. Softmax attention after "Attention Is All You
Need" (arXiv 1706.03762), grouped queries after arXiv 2305.13245, windows after Mistral (arXiv 2310.06825).

Legend: T tokens of the batch, H query heads, K key/value heads, D head_dim, N slots of the pool, L keys of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BLOCK_KEYS = 16384
"""Keys that are gathered from the pool at once: enough to be one operator for many rows, few enough to stay small."""


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


def row_keys(spans: Sequence[tuple[int, int, int]], slot_table: Tensor, *, window: int | None = None) -> tuple[KeyBlock, ...]:
    """What attention needs of each `(row, query_len, seq_len)`, once a step for all layers of a cache group.

    The rows lie in this order in the flat batch. With a `window` W a query at position p sees keys `p - W + 1 .. p`;
    slots further back are not read.
    """
    blocks: list[KeyBlock] = []
    rows: list[RowKeys] = []
    slots: list[Tensor] = []
    num_keys = 0
    for row, query_len, seq_len in spans:
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


def attend(q_THD: Tensor, k_NKD: Tensor, v_NKD: Tensor, blocks: Sequence[KeyBlock], *, scale: float) -> Tensor:
    """[T, H, D] attention of every row over its own keys; H must be a multiple of K, the pools have q's dtype."""
    is_grouped = q_THD.shape[1] != k_NKD.shape[1]
    queries = q_THD.transpose(0, 1).unsqueeze(0).split([row.query_len for block in blocks for row in block.rows], dim=2)
    out: list[Tensor] = []
    # Few operators a row: at one token a row their number, not their work, is the cost of a step.
    for block in blocks:
        keys = k_NKD.index_select(0, block.slots).transpose(0, 1).unsqueeze(0).split(block.key_lens, dim=2)
        values = v_NKD.index_select(0, block.slots).transpose(0, 1).unsqueeze(0).split(block.key_lens, dim=2)
        for row, k_1KLD, v_1KLD in zip(block.rows, keys, values, strict=True):
            out.append(
                scaled_dot_product_attention(
                    queries[len(out)],
                    k_1KLD,
                    v_1KLD,
                    attn_mask=row.mask_QL,
                    is_causal=row.is_causal,
                    scale=scale,
                    enable_gqa=is_grouped,
                )
            )
    return torch.cat(out, dim=2)[0].transpose(0, 1)
