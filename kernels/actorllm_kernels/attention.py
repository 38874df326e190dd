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


@dataclass(frozen=True, slots=True)
class RowKeys:
    """One row's `query_len` queries and its `slots_L` of the pool; the last key belongs to the last query's position.

    `mask_QL` says which keys a query sees. Without it all queries see every key, or with `is_causal`, where the first
    key is the first query's own, those up to their own.
    """

    query_len: int
    slots_L: Tensor
    mask_QL: Tensor | None = None
    is_causal: bool = False


def row_keys(spans: Sequence[tuple[int, int, int]], slot_table: Tensor, *, window: int | None = None) -> tuple[RowKeys, ...]:
    """What attention needs of each `(row, query_len, seq_len)`, once a step for all layers of a cache group.

    The rows lie in this order in the flat batch. With a `window` W a query at position p sees keys `p - W + 1 .. p`;
    slots further back are not read.
    """
    keys = []
    for row, query_len, seq_len in spans:
        first_query = seq_len - query_len
        first_key = 0 if window is None else max(0, first_query - window + 1)
        slots_L = slot_table[row, first_key:seq_len].to(torch.int64)
        if query_len == 1:
            keys.append(RowKeys(query_len, slots_L))
        elif first_query == 0 and (window is None or seq_len <= window):
            keys.append(RowKeys(query_len, slots_L, is_causal=True))
        else:
            mask = causal_mask(first_query, seq_len, first_key=first_key, window=window, device=slot_table.device)
            keys.append(RowKeys(query_len, slots_L, mask))
    return tuple(keys)


def causal_mask(first_query: int, seq_len: int, *, first_key: int, window: int | None, device: torch.device) -> Tensor:
    """[Q, L] bool: which of the keys `first_key .. seq_len - 1` each query `first_query .. seq_len - 1` sees."""
    query_Q1 = torch.arange(first_query, seq_len, device=device).unsqueeze(1)
    key_1L = torch.arange(first_key, seq_len, device=device).unsqueeze(0)
    seen_QL = key_1L <= query_Q1
    if window is not None:
        seen_QL &= key_1L > query_Q1 - window
    return seen_QL


def attend(q_THD: Tensor, k_NKD: Tensor, v_NKD: Tensor, keys: Sequence[RowKeys], *, scale: float) -> Tensor:
    """[T, H, D] attention of every row over its own keys; H must be a multiple of K, the pools have q's dtype."""
    is_grouped = q_THD.shape[1] != k_NKD.shape[1]
    q_1HTD = q_THD.transpose(0, 1).unsqueeze(0)
    out = []
    # Few operators a row: at one token a row their number, not their work, is the cost of a step.
    for row, q_1HQD in zip(keys, q_1HTD.split([row.query_len for row in keys], dim=2), strict=True):
        k_1KLD = k_NKD.index_select(0, row.slots_L).transpose(0, 1).unsqueeze(0)
        v_1KLD = v_NKD.index_select(0, row.slots_L).transpose(0, 1).unsqueeze(0)
        out.append(
            scaled_dot_product_attention(
                q_1HQD,
                k_1KLD,
                v_1KLD,
                attn_mask=row.mask_QL,
                is_causal=row.is_causal,
                scale=scale,
                enable_gqa=is_grouped,
            )
        )
    return torch.cat(out, dim=2)[0].transpose(0, 1)
