"""What the gated product means, in torch operators: the specification."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def clamped_swiglu(gate_TI: Tensor, up_TI: Tensor, *, limit: float, gain: float) -> Tensor:
    """`gate * sigmoid(gain * gate) * (up + 1)`, where gate is at most `limit`, and up within it (arXiv 2508.10925)."""
    gate_TI, up_TI = gate_TI.clamp(max=limit), up_TI.clamp(-limit, limit)
    return gate_TI * (gain * gate_TI).sigmoid() * (up_TI + 1)


def gated(gate_TI: Tensor, up_TI: Tensor, *, activation: str) -> Tensor:
    """`act(gate) * up`; `activation` is one of `ACTIVATIONS`."""
    return ACTIVATIONS[activation](gate_TI) * up_TI
