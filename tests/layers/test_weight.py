"""A plain tensor is pulled by its module's own name, whole or a rank's rows."""

import pytest
import torch
from torch import nn

from actorllm.errors import TensorMissing
from actorllm.layers.weight import Weight
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module, unload_module


class Only(RandomWeights):
    """A source of one tensor."""

    def tensor(self, name, shape, *, rows=None):
        if name != "layers.0.gate":
            raise TensorMissing(name)
        return super().tensor(name, shape, rows=rows)


def model(**parts: nn.Module) -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict(parts)])})


def test_a_tensor_of_the_modules_name() -> None:
    whole, part = Weight((6, 2)), Weight((6, 2), rows=(2, 5))
    for weight in (whole, part):
        load_module(model(gate=weight), Only(1))
    assert whole().shape == (6, 2)
    assert torch.equal(part(), whole()[2:5])
    unload_module(part)
    with pytest.raises(AssertionError, match="no weights yet"):
        part()


def test_another_name_is_missing() -> None:
    with pytest.raises(TensorMissing, match=r"layers\.0\.door"):
        load_module(model(door=Weight((6, 2))), Only(1))
