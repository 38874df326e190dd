"""What happens between the projections and attention: queries and keys are rotated to their positions (arXiv 2104.09864),
and keys and values (or latents) are written into their token slots.

`reference` specifies it; `cpu` is the C++ kernel. Legend: T tokens, H query heads, K key/value heads, D head_dim,
E head_dim of values, R rotated size of a head (its first R values), N slots of the pool.
"""

from torch import Tensor

from actorllm_kernels.rotary_store import cpu, reference
from actorllm_kernels.rotary_store.reference import Angles, rotate, store

__all__ = ["Angles", "rotate", "rotate_and_store", "store"]


def rotate_and_store(
    q_THD: Tensor, k_TKD: Tensor, v_TKE: Tensor, angles: Angles, slots_T: Tensor, pools: tuple[Tensor, Tensor]
) -> Tensor:
    """The rotated queries [T, H, D], see `reference.rotate_and_store`; the fastest way there is here."""
    operator = cpu if cpu.suits(q_THD, k_TKD, v_TKE, angles, pools) else reference
    return operator.rotate_and_store(q_THD, k_TKD, v_TKE, angles, slots_T, pools)
