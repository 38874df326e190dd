"""Attention over token slots: a flat, unpadded batch of prefill chunks and decode rows.

`reference` specifies it; `cpu` is the C++ kernel, `triton` are those for GPUs. Legend: T tokens of the batch, H query heads,
K key/value heads, D head_dim, E head_dim of values, N slots of the pool.
"""

from types import ModuleType

from torch import Tensor

from actorllm_kernels.attention import cpu, reference
from actorllm_kernels.attention.keys import RaggedKeys, Span, flat_spans
from actorllm_kernels.backends import Heads, takes_triton
from actorllm_kernels.quantize import LARGEST

__all__ = ["RaggedKeys", "Span", "attend", "flat_spans"]


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
    k_scales_NK: Tensor | None = None,
    v_scales_NK: Tensor | None = None,
) -> Tensor:
    """[T, H, E] attention of every row over its own keys, see `reference.attend`; the fastest way there is here."""
    asked = {"window": keys.window, "soft cap": soft_cap, "sinks": sinks_H, "slopes": slopes_H}
    extras = frozenset(name for name, value in asked.items() if value is not None)
    return (kernels_for(q_THD, k_NKD, v_NKE, extras=extras) or reference).attend(
        q_THD,
        k_NKD,
        v_NKE,
        keys,
        scale=scale,
        soft_cap=soft_cap,
        sinks_H=sinks_H,
        slopes_H=slopes_H,
        k_scales_NK=k_scales_NK,
        v_scales_NK=v_scales_NK,
    )


def kernels_for(
    q_THD: Tensor, k_NKD: Tensor, v_NKE: Tensor, *, operator: str = "attention", extras: frozenset[str] = frozenset()
) -> ModuleType | None:
    """The module of the kernels that can compute this here, if there are any; `operator` is what they are checked as."""
    if cpu.suits(q_THD, k_NKD, v_NKE):
        return cpu
    quantized = k_NKD.dtype if k_NKD.dtype in LARGEST else None
    heads = Heads(q_THD.shape[1], k_NKD.shape[1], q_THD.shape[2], v_NKE.shape[2], quantized, extras)
    if takes_triton(operator, q_THD, heads):
        from actorllm_kernels.attention import triton  # takes a second, and is not there without a GPU

        return triton if triton.suits(q_THD, k_NKD, v_NKE) else None
    return None
