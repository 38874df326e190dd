"""Products with weights of a few bits, `x W^T + b`: the weights are read as they are stored, which is what a decode step waits for.

`reference` specifies it; `triton` is the kernel for GPUs. Legend: M rows of x, N outputs, K inputs, G inputs with one factor.
"""

from torch import Tensor

from actorllm_kernels.backends import takes_triton
from actorllm_kernels.linear_int import reference
from actorllm_kernels.linear_int.reference import IntWeight, pack, quantize_weight

__all__ = ["IntWeight", "linear_int", "pack", "quantize_weight"]


def linear_int(x_MK: Tensor, weight: IntWeight, bias_N: Tensor | None = None) -> Tensor:
    """[M, N] in x's dtype, see `reference.linear_int`; the fastest way there is here."""
    if takes_triton("linear_int", x_MK):
        from actorllm_kernels.linear_int import triton  # takes a second, and is not there without a GPU

        if triton.suits(x_MK, weight):
            return triton.linear_int(x_MK, weight, bias_N)
    return reference.linear_int(x_MK, weight, bias_N)
