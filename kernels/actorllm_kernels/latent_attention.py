"""Latent attention over token slots: every head reads one shared latent per token instead of keys and values of its own.

After DeepSeek-V2 (arXiv 2405.04434, section 2.1): a token is kept as its compressed latent and one rotated key. With a head's
key projection folded into its query, scores are products with the latent itself, and the result is a mixture of latents
that the head's value projection turns into its value. So it is attention of many query heads with one key/value
head whose values are the first part of its keys.

In a pool of one byte a value the latent and the rotated key have a factor each (`quantize`): their sizes differ, and the latent's
digits should not be lost to the key.

Legend: T tokens of the batch, H query heads, N slots of the pool, R size of a latent, P of the rotated key, C = R + P.
"""

import torch
from torch import Tensor

from actorllm_kernels.attention import RaggedKeys, kernels_for, reference
from actorllm_kernels.quantize import dequantize_parts, rows_of
from actorllm_kernels.rotary_store import Angles, rotate, store
from actorllm_kernels.rotary_store import kernels_for as store_kernels_for


def store_latent(
    latent_TC: Tensor, slots_T: Tensor, pool_NC: Tensor, *, latent_size: int, scales_N2: Tensor | None = None
) -> None:
    """Latents with their rotated keys into their slots; a pool of one byte a value has `scales_N2`."""
    if scales_N2 is None:
        store(latent_TC, slots_T, pool_NC)
        return
    for index, part in enumerate((slice(latent_size), slice(latent_size, None))):
        store(latent_TC[:, None, part], slots_T, pool_NC[:, None, part], scales_N2[:, index : index + 1])


def rotate_and_store_latent(
    q_THP: Tensor,
    latent_TR: Tensor,
    key_TP: Tensor,
    angles: Angles,
    slots_T: Tensor,
    pool_NC: Tensor,
    *,
    scales_N2: Tensor | None = None,
) -> Tensor:
    """[T, H, P] the rotated parts of queries; latents with their rotated keys go into their slots. The fastest way here."""
    operator = rotate_and_store_latent_reference
    latent_N1R, key_N1P = pool_NC.unsqueeze(1).split([latent_TR.shape[1], key_TP.shape[1]], dim=2)
    if kernels := store_kernels_for(q_THP, (key_N1P, latent_N1R), operator="latent_store"):
        operator = kernels.rotate_and_store_latent
    return operator(q_THP, latent_TR, key_TP, angles, slots_T, pool_NC, scales_N2=scales_N2)


def rotate_and_store_latent_reference(
    q_THP: Tensor,
    latent_TR: Tensor,
    key_TP: Tensor,
    angles: Angles,
    slots_T: Tensor,
    pool_NC: Tensor,
    *,
    scales_N2: Tensor | None = None,
) -> Tensor:
    """The same in plain torch."""
    latent_TC = torch.cat((latent_TR, rotate(key_TP.unsqueeze(1), angles).squeeze(1)), dim=-1)
    store_latent(latent_TC, slots_T, pool_NC, latent_size=latent_TR.shape[1], scales_N2=scales_N2)
    return rotate(q_THP, angles)


def attend_latent(
    q_THC: Tensor, pool_NC: Tensor, keys: RaggedKeys, *, latent_size: int, scale: float, scales_N2: Tensor | None = None
) -> Tensor:
    """[T, H, R]: for every query the mixture of its row's latents by the softmax of `scale * q.k`; the fastest way there is here.

    A slot holds the latent, then the rotated key; so does a query hold its folded part, then its rotated one.
    """
    k_N1C = pool_NC.unsqueeze(1)
    v_N1R = k_N1C[..., :latent_size]
    if kernels := kernels_for(q_THC, k_N1C, v_N1R, operator="latent_attention"):
        scales = {} if scales_N2 is None else {"k_scales_NK": scales_N2.unsqueeze(1), "v_scales_NK": scales_N2[:, :1]}
        return kernels.attend(q_THC, k_N1C, v_N1R, keys, scale=scale, **scales)
    return attend_latent_reference(q_THC, pool_NC, keys, latent_size=latent_size, scale=scale, scales_N2=scales_N2)


def attend_latent_reference(
    q_THC: Tensor, pool_NC: Tensor, keys: RaggedKeys, *, latent_size: int, scale: float, scales_N2: Tensor | None = None
) -> Tensor:
    """The same in plain torch: a row's heads are the rows of one product with its latents. The pool has the queries' dtype."""
    queries = q_THC.transpose(0, 1).split([span.query_len for span in keys.spans], dim=1)
    out: list[Tensor] = []
    for block in keys.blocks:
        if scales_N2 is None:
            gathered_LC = pool_NC.index_select(0, block.slots)
        else:
            gathered_LC = dequantize_parts(rows_of(pool_NC, block.slots), scales_N2[block.slots], latent_size).to(q_THC.dtype)
        for row, keys_LC in zip(block.rows, gathered_LC.split(block.key_lens), strict=True):
            k_1LC = keys_LC.unsqueeze(0)
            v_1LR = k_1LC[..., :latent_size]
            out.append(
                reference.attend_row(
                    queries[len(out)], k_1LC, v_1LR, row, scale=scale, soft_cap=None, sinks_H=None, slopes_H=None
                )
            )
    return torch.cat(out, dim=1).transpose(0, 1)
