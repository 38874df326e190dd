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
    """One row's queries `[start, start + query_len)` of the flat batch and its `slots_L` of the pool.

    The last key belongs to the last query's position. `mask_QL` is None where every query sees every key.
    """

    start: int
    query_len: int
    slots_L: Tensor
    mask_QL: Tensor | None


def row_keys(
    spans: Sequence[tuple[int, int, int, int]], slot_table: Tensor, *, window: int | None = None
) -> tuple[RowKeys, ...]:
    """What attention needs of each `(row, start, query_len, seq_len)`, once a step for all layers of a cache group.

    With a `window` W a query at position p sees keys `p - W + 1 .. p`; slots further back are not read.
    """
    keys = []
    for row, start, query_len, seq_len in spans:
        first_query = seq_len - query_len
        first_key = 0 if window is None else max(0, first_query - window + 1)
        slots_L = slot_table[row, first_key:seq_len].to(torch.int64)
        mask = None
        if query_len > 1:
            mask = causal_mask(first_query, seq_len, first_key=first_key, window=window, device=slot_table.device)
        keys.append(RowKeys(start, query_len, slots_L, mask))
    return tuple(keys)


def causal_mask(
    first_query: int, seq_len: int, *, first_key: int, window: int | None, device: torch.device
) -> Tensor:
    """[Q, L] bool: which of the keys `first_key .. seq_len - 1` each query `first_query .. seq_len - 1` sees."""
    query_Q1 = torch.arange(first_query, seq_len, device=device).unsqueeze(1)
    key_1L = torch.arange(first_key, seq_len, device=device).unsqueeze(0)
    seen_QL = key_1L <= query_Q1
    if window is not None:
        seen_QL &= key_1L > query_Q1 - window
    return seen_QL


def attend(q_THD: Tensor, k_NKD: Tensor, v_NKD: Tensor, keys: Sequence[RowKeys], *, scale: float) -> Tensor:
    """[T, H, D] attention of every row over its own keys; H must be a multiple of K."""
    out_THD = torch.empty_like(q_THD)
    is_grouped = q_THD.shape[1] != k_NKD.shape[1]
    for row in keys:
        rows = slice(row.start, row.start + row.query_len)
        q_1HQD = q_THD[rows].transpose(0, 1).unsqueeze(0)
        k_1KLD = k_NKD[row.slots_L].to(q_THD.dtype).transpose(0, 1).unsqueeze(0)
        v_1KLD = v_NKD[row.slots_L].to(q_THD.dtype).transpose(0, 1).unsqueeze(0)
        o_1HQD = scaled_dot_product_attention(
            q_1HQD, k_1KLD, v_1KLD, attn_mask=row.mask_QL, scale=scale, enable_gqa=is_grouped
        )
        out_THD[rows] = o_1HQD[0].transpose(0, 1)
    return out_THD
