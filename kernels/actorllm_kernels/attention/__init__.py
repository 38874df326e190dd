"""Attention over token slots: a flat, unpadded batch of prefill chunks and decode rows.

`reference` specifies it; `cpu` is the C++ kernel. Legend: T tokens of the batch, H query heads, K key/value heads,
D head_dim, E head_dim of values, N slots of the pool.
"""

from torch import Tensor

from actorllm_kernels.attention import cpu, reference
from actorllm_kernels.attention.keys import RaggedKeys

__all__ = ["RaggedKeys", "attend"]


def attend(
    q_THD: Tensor,
    k_NKD: Tensor,
    v_NKE: Tensor,
    keys: RaggedKeys,
    *,
    scale: float,
    soft_cap: float | None = None,
    sinks_H: Tensor | None = None,
    slopes_H: Tensor | None = None,
) -> Tensor:
    """[T, H, E] attention of every row over its own keys, see `reference.attend`; the fastest way there is here."""
    operator = cpu if cpu.suits(q_THD, k_NKD, v_NKE) else reference
    return operator.attend(q_THD, k_NKD, v_NKE, keys, scale=scale, soft_cap=soft_cap, sinks_H=sinks_H, slopes_H=slopes_H)
