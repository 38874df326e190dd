"""The experts of a mixture: each token's few feed-forward blocks, weighted and summed (arXiv 2401.04088).

`reference` specifies it, `triton` holds the kernels for GPUs, which take weights as values or as codes. Legend: T tokens, D
hidden size, E experts, K experts of one token, I an expert's inner size, J = 2 I.
"""

from torch import Tensor

from actorllm_kernels.backends import takes_triton
from actorllm_kernels.experts import reference
from actorllm_kernels.experts.stacks import ExpertStack, MatrixStack
from actorllm_kernels.gated import GatedProduct

__all__ = ["ExpertStack", "MatrixStack", "run_experts"]


def run_experts(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, stack: ExpertStack, *, combine: GatedProduct) -> Tensor:
    """[T, D] in x's dtype, see `reference.run_experts`; the fastest way there is here."""
    if all([takes_triton("experts", x_TD, form) for form in (stack.gate_up.form, stack.down.form)]):
        from actorllm_kernels.experts import triton  # takes a second, and is not there without a GPU

        if triton.suits(x_TD, stack):
            return triton.run_experts(x_TD, weights_TK, experts_TK, stack, combine=combine)
    return reference.run_experts(x_TD, weights_TK, experts_TK, stack, combine=combine)
