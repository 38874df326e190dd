"""Which experts of a mixture each token goes to, and with which weights.

`reference` specifies it; `triton` is the kernel for GPUs. Legend: T tokens, E experts, K experts of one token.
"""

from torch import Tensor

from actorllm_kernels.backends import takes_triton
from actorllm_kernels.routing import reference
from actorllm_kernels.routing.reference import Rule

__all__ = ["Rule", "choose"]


def choose(logits_TE: Tensor, correction_E: Tensor | None, *, rule: Rule) -> tuple[Tensor, Tensor]:
    """(weights [T, K] float32, experts [T, K] int64), see `reference.choose`; the fastest way there is here."""
    if takes_triton("routing", logits_TE, rule.form):
        from actorllm_kernels.routing import triton  # takes a second, and is not there without a GPU

        if triton.suits(logits_TE, correction_E):
            return triton.choose(logits_TE, correction_E, rule=rule)
    return reference.choose(logits_TE, correction_E, rule=rule)
