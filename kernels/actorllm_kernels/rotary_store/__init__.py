"""What happens between the projections and attention: queries and keys are rotated to their positions (arXiv 2104.09864),
and keys and values (or latents) are written into their token slots.

`reference` specifies it; `cpu` is the C++ kernel, `triton` the one for GPUs. Legend: T tokens, H query heads, K key/value heads,
D head_dim, E head_dim of values, R rotated size of a head (its first R values), N slots of the pool.
"""

from types import ModuleType

from torch import Tensor

from actorllm_kernels.backends import Heads, takes_triton
from actorllm_kernels.quantize import LARGEST
from actorllm_kernels.rotary_store import cpu, reference
from actorllm_kernels.rotary_store.reference import Angles, angles_at, rotate

__all__ = ["Angles", "angles_at", "angles_of", "rotate", "rotate_and_store", "store"]


def angles_of(positions_T: Tensor, frequencies_F: Tensor, *, factor: float = 1.0, is_interleaved: bool = False) -> Angles:
    """See `reference.angles_of`; the fastest way there is here."""
    operator = cpu if cpu.suits_positions(positions_T, frequencies_F) else reference
    return operator.angles_of(positions_T, frequencies_F, factor=factor, is_interleaved=is_interleaved)


def rotate_and_store(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKE: Tensor,
    angles: Angles | None,
    slots_T: Tensor,
    pools: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The rotated queries [T, H, D], see `reference.rotate_and_store`; the fastest way there is here."""
    if cpu.suits(q_THD, k_TKD, v_TKE, angles, pools, scales):
        return cpu.rotate_and_store(q_THD, k_TKD, v_TKE, angles, slots_T, pools, scales)
    operator = kernels_for(q_THD, pools) or reference
    return operator.rotate_and_store(q_THD, k_TKD, v_TKE, angles, slots_T, pools, scales)


def store(values_T: Tensor, slots_T: Tensor, pool_N: Tensor, scales_N: Tensor | None = None) -> None:
    """Write each token's values into its slot, see `reference.store`; the fastest way there is here."""
    if scales_N is not None and cpu.suits_quantized(values_T, pool_N):
        cpu.store_quantized(values_T, slots_T, pool_N, scales_N)
    else:
        reference.store(values_T, slots_T, pool_N, scales_N)


def kernels_for(q_THD: Tensor, pools: tuple[Tensor, Tensor], *, operator: str = "rotary_store") -> ModuleType | None:
    """The module of the GPU's kernel, if it can compute this; `operator` is what it is checked as."""
    quantized = pools[0].dtype if pools[0].dtype in LARGEST else None
    if not takes_triton(operator, q_THD, Heads(q_THD.shape[1], pools[0].shape[1], q_THD.shape[2], pools[1].shape[2], quantized)):
        return None
    from actorllm_kernels.rotary_store import triton  # takes a second, and is not there without a GPU

    return triton if triton.suits(q_THD, pools) else None
