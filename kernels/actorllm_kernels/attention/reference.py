"""What attention computes, in plain torch operators: the specification of the kernels, and what runs without them.

Goes row by row and pads nothing. Softmax attention after "Attention Is All You
Need" (arXiv 1706.03762), grouped queries after arXiv 2305.13245, windows after Mistral (arXiv 2310.06825), soft caps
after Gemma 2 (arXiv 2408.00118), sinks after gpt-oss (arXiv 2508.10925), slopes after ALiBi (arXiv 2108.12409).

Legend: T tokens of the batch, H query heads, K key/value heads, D head_dim, N slots of the pool, Q queries and L keys of one row,
S a slice of its queries.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from actorllm_kernels.attention.keys import KeyBlock, RaggedKeys, RowKeys
from actorllm_kernels.quantize import dequantize, rows_of

BLOCK_SCORES = 2**22
"""Scores of queries with keys that exist at once where they are written out: 16 MiB, and a long prompt needs no more."""


def attend(
    q_THD: Tensor,
    k_NKD: Tensor,
    v_NKD: Tensor,
    keys: RaggedKeys,
    *,
    scale: float,
    soft_cap: float | None = None,
    sinks_H: Tensor | None = None,
    slopes_H: Tensor | None = None,
    k_scales_NK: Tensor | None = None,
    v_scales_NK: Tensor | None = None,
) -> Tensor:
    """[T, H, D] attention of every row over its own keys; H must be a multiple of K, the pools have q's dtype.

    Pools of int8 or float8_e4m3fn have a factor for each token and head (`quantize`), which makes keys and values of them.

    The softmax is over `scale * q.k`, capped to `soft_cap * tanh(score / soft_cap)`; then a head's slope times the key's
    position less the query's is added. A head's sink is one more score in the sum that normalizes, without a value.
    """
    is_plain = soft_cap is None and sinks_H is None and slopes_H is None
    is_grouped = q_THD.shape[1] != k_NKD.shape[1]
    queries = q_THD.transpose(0, 1).unsqueeze(0).split([span.query_len for span in keys.spans], dim=2)
    out: list[Tensor] = []
    # Few operators a row: at one token a row their number, not their work, is the cost of a step.
    for block in keys.blocks:
        k_blocks = _gathered(k_NKD, k_scales_NK, block, dtype=q_THD.dtype)
        v_blocks = _gathered(v_NKD, v_scales_NK, block, dtype=q_THD.dtype)
        for row, k_1KLD, v_1KLD in zip(block.rows, k_blocks, v_blocks, strict=True):
            q_1HQD = queries[len(out)]
            if is_plain:
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
            else:
                out.append(
                    attend_row(
                        q_1HQD[0], k_1KLD[0], v_1KLD[0], row, scale=scale, soft_cap=soft_cap, sinks_H=sinks_H, slopes_H=slopes_H
                    ).unsqueeze(0)
                )
    return torch.cat(out, dim=2)[0].transpose(0, 1)


def _gathered(pool_NKD: Tensor, scales_NK: Tensor | None, block: KeyBlock, *, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """[1, K, L, D] each of the block's rows, in the dtype that is computed with."""
    if scales_NK is None:
        gathered = pool_NKD.index_select(0, block.slots)
    else:
        gathered = dequantize(rows_of(pool_NKD, block.slots), scales_NK.index_select(0, block.slots)).to(dtype)
    return gathered.transpose(0, 1).unsqueeze(0).split(block.key_lens, dim=2)


def attend_row(
    q_HQD: Tensor,
    k_KLD: Tensor,
    v_KLD: Tensor,
    row: RowKeys,
    *,
    scale: float,
    soft_cap: float | None,
    sinks_H: Tensor | None,
    slopes_H: Tensor | None,
) -> Tensor:
    """[H, Q, D] attention of one row with the scores written out in float32, a slice of its queries at a time."""
    num_heads, num_kv_heads = len(q_HQD), len(k_KLD)
    if row.query_len == 0:
        return q_HQD.new_empty(num_heads, 0, v_KLD.shape[2])
    k_KDL = k_KLD.to(torch.float32).transpose(1, 2)
    key_L = torch.arange(row.num_keys, device=k_KLD.device)
    out: list[Tensor] = []
    slice_len = max(1, BLOCK_SCORES // (num_heads * row.num_keys))
    for begin in range(0, row.query_len, slice_len):
        q_HSD = q_HQD[:, begin : begin + slice_len]
        num_queries = q_HSD.shape[1]
        # The heads of a group lie together, so that a group's queries are rows of one product.
        q_KRD = q_HSD.to(torch.float32).reshape(num_kv_heads, -1, q_HSD.shape[2])
        scores_HSL = (q_KRD @ k_KDL).mul_(scale).view(num_heads, num_queries, row.num_keys)
        if soft_cap is not None:
            scores_HSL = scores_HSL.div_(soft_cap).tanh_().mul_(soft_cap)
        if slopes_H is not None or row.is_causal:
            first = row.num_keys - row.query_len + begin
            ahead_SL = key_L - torch.arange(first, first + num_queries, device=key_L.device).unsqueeze(1)
            if slopes_H is not None:
                scores_HSL += slopes_H.view(-1, 1, 1) * ahead_SL
            if row.is_causal:
                scores_HSL.masked_fill_(ahead_SL > 0, -torch.inf)
        if row.mask_QL is not None:
            scores_HSL.masked_fill_(~row.mask_QL[begin : begin + num_queries], -torch.inf)
        shares_HSL = _softmax(scores_HSL, sinks_H).to(v_KLD.dtype)
        out.append((shares_HSL.view(num_kv_heads, -1, row.num_keys) @ v_KLD).view(num_heads, num_queries, -1))
    return torch.cat(out, dim=1)


def _softmax(scores_HSL: Tensor, sinks_H: Tensor | None) -> Tensor:
    """Over the keys, and over each head's sink, whose share goes nowhere."""
    if sinks_H is None:
        return scores_HSL.softmax(dim=-1)
    sinks_HS1 = sinks_H.to(scores_HSL.dtype).view(-1, 1, 1).expand(-1, scores_HSL.shape[1], 1)
    return torch.cat((scores_HSL, sinks_HS1), dim=-1).softmax(dim=-1)[..., :-1]
