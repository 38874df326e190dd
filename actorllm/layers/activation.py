"""Activation functions by the names that config.json uses, alone and as the gated product. Legend: T tokens, I inner size."""

from collections.abc import Callable, Mapping

from torch import Tensor

from actorllm.errors import UnsupportedConfig
from actorllm_kernels.gated import ACTIVATIONS, GatedProduct

Activation = Callable[[Tensor], Tensor]
GatedActivation = Callable[[Tensor, Tensor], Tensor]
"""(gate [T, I], up [T, I]) -> [T, I]."""

_KERNEL_NAMES: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def activation(name: str) -> Activation:
    """The function called `name`; raises `UnsupportedConfig` for an unknown one."""
    return ACTIVATIONS[_kernel_name(name)]


def gated(name: str) -> GatedProduct:
    """`act(gate) * up` with the activation called `name` (arXiv 2002.05202); raises `UnsupportedConfig` for an unknown one."""
    return GatedProduct(_kernel_name(name))


def _kernel_name(name: str) -> str:
    if name not in _KERNEL_NAMES:
        raise UnsupportedConfig(f"activation {name!r} is not implemented; known are {', '.join(sorted(_KERNEL_NAMES))}")
    return _KERNEL_NAMES[name]
