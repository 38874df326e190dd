"""Activation functions by the names that config.json uses."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from actorllm.errors import UnsupportedConfig

Activation = Callable[[Tensor], Tensor]
_TANH_GELU = partial(F.gelu, approximate="tanh")
_BY_NAME: dict[str, Activation] = {
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
}


def activation(name: str) -> Activation:
    """The function called `name`; raises `UnsupportedConfig` for an unknown one."""
    if name not in _BY_NAME:
        raise UnsupportedConfig(f"activation {name!r} is not implemented; known are {', '.join(sorted(_BY_NAME))}")
    return _BY_NAME[name]
