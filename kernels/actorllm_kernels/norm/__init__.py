"""Root mean square normalisation (arXiv 1910.07467), alone or after the addition that comes before it.

`reference` specifies it; `cpu` is the C++ kernel. Legend: T tokens (any leading axes for `rms_norm`), D the normalised size.
"""

from torch import Tensor

from actorllm_kernels.norm import cpu, reference

__all__ = ["add_rms_norm", "rms_norm"]


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """See `reference.rms_norm`; the fastest way there is here."""
    operator = cpu if cpu.suits(x_TD, weight_D) else reference
    return operator.rms_norm(x_TD, weight_D, eps=eps)


def add_rms_norm(x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; the fastest way there is here."""
    operator = cpu if cpu.suits(x_TD, weight_D) and cpu.suits(y_TD, weight_D) else reference
    return operator.add_rms_norm(x_TD, y_TD, weight_D, eps=eps)
