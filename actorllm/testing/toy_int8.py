"""A toy int8 format, to prove that the layers leave a weight's form to its source; and one layer at a time.

Not for serving. `Int8Weights` keeps every linear as codes and one scale a row; `RoundedWeights` gives the same values
as plain float tensors, so both must compute the same. Legend: O outputs, I inputs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from actorllm.models.contract import CausalLM
from actorllm.weights.linear_weight import DenseWeight, LinearWeight
from actorllm.weights.source import Part, WeightSource, load_module, unload_module


class Int8Weight(LinearWeight):
    """Codes [O, I] int8 and scales [O, 1]; the product is scaled afterwards."""

    def __init__(self, codes_OI: Tensor, scale_O1: Tensor) -> None:
        super().__init__()
        self.codes_OI = codes_OI
        self.scale_O1 = scale_O1
        self.out_features = codes_OI.shape[0]
        self.dtype = scale_O1.dtype

    @classmethod
    def quantized(cls, weight_OI: Tensor) -> "Int8Weight":
        """Symmetric, one scale a row, rounded to nearest."""
        scale_O1 = weight_OI.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        return cls((weight_OI / scale_O1).round().to(torch.int8), scale_O1)

    @classmethod
    def join(cls, parts: list[LinearWeight]) -> "Int8Weight":
        quantized = [part for part in parts if isinstance(part, Int8Weight)]
        return cls(torch.cat([part.codes_OI for part in quantized]), torch.cat([part.scale_O1 for part in quantized]))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codes_OI.to(x.dtype)) * self.scale_O1.T

    def dense(self) -> Tensor:
        """[O, I] in floating point."""
        return self.codes_OI * self.scale_O1


class Int8Weights:
    """A `WeightSource` over another one, with every linear quantized when it is pulled."""

    def __init__(self, inner: WeightSource) -> None:
        self._inner = inner

    def has(self, name: str) -> bool:
        return self._inner.has(name)

    def tensor(self, name: str, shape: tuple[int, ...], *, rows: Part = None) -> Tensor:
        return self._inner.tensor(name, shape, rows=rows)

    def linear(self, name: str, shape: tuple[int, int], *, rows: Part = None, cols: Part = None) -> LinearWeight:
        return self._form(self._inner.linear(name, shape, rows=rows, cols=cols))

    def table(self, name: str, shape: tuple[int, int], *, rows: Part = None) -> LinearWeight:
        return self._inner.table(name, shape, rows=rows)

    def stack(self, name: str, shape: tuple[int, int, int], *, rows: Part = None, cols: Part = None) -> Iterator[LinearWeight]:
        return (self._form(dense) for dense in self._inner.stack(name, shape, rows=rows, cols=cols))

    def _form(self, dense: LinearWeight) -> LinearWeight:
        assert isinstance(dense, DenseWeight)
        return Int8Weight.quantized(dense.weight)


class RoundedWeights(Int8Weights):
    """The same rounded values as plain weights."""

    def _form(self, dense: LinearWeight) -> LinearWeight:
        weight = super()._form(dense)
        assert isinstance(weight, Int8Weight)
        return DenseWeight(weight.dense())


class OneLayerResident:
    """Holds one layer's weights at a time: what `forward` takes as `layer`, after AirLLM's idea.

    Everything outside of the layers stays loaded.
    """

    def __init__(self, model: CausalLM, source: WeightSource) -> None:
        self._model = model
        self._source = source
        self._names = {id(module): name for name, module in model.named_modules()}
        self.num_loads = 0
        load_module(model, source)
        for index in range(model.config.num_layers):
            unload_module(model.layer(index))

    def layer(self, index: int) -> nn.Module:
        """Layer `index` with its weights; the one before gives its memory back."""
        unload_module(self._model.layer(index - 1 if index else self._model.config.num_layers - 1))
        layer = self._model.layer(index)
        load_module(layer, self._source, self._names[id(layer)])
        self.num_loads += 1
        return layer
