"""The product in the middle of a gated MLP: `act(gate) * up` (arXiv 2002.05202).

`reference` specifies it; `cpu` is the C++ kernel, `triton` the one for GPUs. Legend: T tokens, I inner size.
"""

from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from actorllm_kernels.backends import takes_triton
from actorllm_kernels.gated import cpu, reference
from actorllm_kernels.gated.reference import ACTIVATIONS

__all__ = ["ACTIVATIONS", "GatedProduct", "gated"]


def gated(gate_TI: Tensor, up_TI: Tensor, *, activation: str) -> Tensor:
    """[T, I], see `reference.gated`; the fastest way there is here."""
    operator = cpu if cpu.suits(gate_TI, up_TI, activation) else kernels_for(gate_TI, activation) or reference
    return operator.gated(gate_TI, up_TI, activation=activation)


@dataclass(frozen=True)
class GatedProduct:
    """A gated product as a value, which a kernel can make part of another: `gated` with `activation`, or with a `limit`
    `reference.clamped_swiglu` with it and `gain`, which takes SiLU."""

    activation: str = "silu"
    limit: float | None = None
    gain: float = 1.0

    def __call__(self, gate_TI: Tensor, up_TI: Tensor) -> Tensor:
        """[T, I]."""
        if self.limit is None:
            return gated(gate_TI, up_TI, activation=self.activation)
        return reference.clamped_swiglu(gate_TI, up_TI, limit=self.limit, gain=self.gain)

    def of_halves(self, both_TJ: Tensor) -> Tensor:
        """[T, J / 2]: of a linear's outputs, of which the first half are the gates."""
        gate_TI, up_TI = both_TJ.chunk(2, dim=-1)
        return self(gate_TI, up_TI)


def kernels_for(gate_TI: Tensor, activation: str) -> ModuleType | None:
    """The module of the GPU's kernel, if it can compute this."""
    if not takes_triton("gated", gate_TI, activation):
        return None
    from actorllm_kernels.gated import triton  # takes a second, and is not there without a GPU

    return triton if triton.suits(gate_TI) else None
