"""Root mean square (arXiv 1910.07467) and layer (arXiv 1607.06450) normalisation, alone or after the addition before it.

`reference` specifies it; `cpu` is the C++ kernel, `triton` the one for GPUs. Legend: T tokens (any
leading axes), D the normalised size.
"""

from types import ModuleType

from torch import Tensor

from actorllm_kernels.backends import takes_triton
from actorllm_kernels.norm import cpu, reference

__all__ = ["add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"]


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """See `reference.rms_norm`; the fastest way there is here."""
    operator = cpu if cpu.suits(x_TD, weight_D) else kernels_for(x_TD, "rms") or reference
    return operator.rms_norm(x_TD, weight_D, eps=eps)


def add_rms_norm(x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; the fastest way there is here."""
    operator = cpu if cpu.suits(x_TD, weight_D) and cpu.suits(y_TD, weight_D) else kernels_for(x_TD, "rms") or reference
    return operator.add_rms_norm(x_TD, y_TD, weight_D, eps=eps)


def layer_norm(x_TD: Tensor, *, weight_D: Tensor | None, bias_D: Tensor | None, eps: float) -> Tensor:
    """See `reference.layer_norm`; on CPUs torch's own is at the limit."""
    operator = kernels_for(x_TD, "layer") or reference
    return operator.layer_norm(x_TD, weight_D=weight_D, bias_D=bias_D, eps=eps)


def add_layer_norm(
    x_TD: Tensor, y_TD: Tensor, *, weight_D: Tensor | None, bias_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference.add_layer_norm`; the fastest way there is here."""
    operator = kernels_for(x_TD, "layer") or reference
    return operator.add_layer_norm(x_TD, y_TD, weight_D=weight_D, bias_D=bias_D, eps=eps)


def kernels_for(x_TD: Tensor, form: str) -> ModuleType | None:
    """The module of the GPU's kernels, if they can compute this."""
    if not takes_triton("norm", x_TD, form):
        return None
    from actorllm_kernels.norm import triton  # takes a second, and is not there without a GPU

    return triton if triton.suits(x_TD) else None
