"""The product in the middle of a gated MLP: `act(gate) * up` (arXiv 2002.05202).

`reference` specifies it; `cpu` is the C++ kernel. Legend: T tokens, I inner size.
"""

from torch import Tensor

from actorllm_kernels.gated import cpu, reference
from actorllm_kernels.gated.reference import ACTIVATIONS

__all__ = ["ACTIVATIONS", "gated"]


def gated(gate_TI: Tensor, up_TI: Tensor, *, activation: str) -> Tensor:
    """[T, I], see `reference.gated`; the fastest way there is here."""
    operator = cpu if cpu.suits(gate_TI, up_TI, activation) else reference
    return operator.gated(gate_TI, up_TI, activation=activation)
