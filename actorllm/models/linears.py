"""Which linears of a checkpoint a model's layers pull. Nothing is read for it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from actorllm.models.contract import CausalLM
from actorllm.models.loading import survey_weights
from actorllm.weights.checkpoint import Checkpoint
from actorllm.weights.linear_weight import LinearWeight
from actorllm.weights.source import Part, WeightSource, load_module, unload_module


@dataclass(frozen=True)
class LayerLinears:
    """By the model's names: `linears` -> their shapes [out, in], and `stacks` of linears (experts)."""

    linears: Mapping[str, tuple[int, int]]
    stacks: Collection[str]


class PullNames:
    """A `WeightSource` over another one that notes what is pulled as a linear (name -> its shape), as a stack, and otherwise."""

    def __init__(self, inner: WeightSource) -> None:
        self._inner = inner
        self.linears: dict[str, tuple[int, int]] = {}
        self.stacks: set[str] = set()
        self.tensors: set[str] = set()

    def has(self, name: str) -> bool:
        return self._inner.has(name)

    def tensor(self, name: str, shape: tuple[int, ...], *, rows: Part = None) -> Tensor:
        self.tensors.add(name)
        return self._inner.tensor(name, shape, rows=rows)

    def linear(self, name: str, shape: tuple[int, int], *, rows: Part = None, cols: Part = None) -> LinearWeight:
        self.linears[name] = shape
        return self._inner.linear(name, shape, rows=rows, cols=cols)

    def table(self, name: str, shape: tuple[int, int], *, rows: Part = None) -> LinearWeight:
        self.tensors.add(f"{name}.weight")
        return self._inner.table(name, shape, rows=rows)

    def stack(self, name: str, shape: tuple[int, int, int], *, rows: Part = None, cols: Part = None) -> Iterator[LinearWeight]:
        self.stacks.add(name)
        return self._inner.stack(name, shape, rows=rows, cols=cols)


def layer_linears(model: CausalLM, checkpoint: Checkpoint) -> LayerLinears:
    """What the model's layers pull, without what is also pulled as a plain tensor.

    What lies outside of the layers (embeddings, heads) is not among it. Raises as `survey_weights`.
    """
    survey_weights(model, checkpoint)
    unload_module(model)
    names = {id(module): name for name, module in model.named_modules()}
    pulls = PullNames(checkpoint)
    with checkpoint.survey():
        for index in range(model.config.num_layers):
            layer = model.layer(index)
            load_module(layer, pulls, names[id(layer)])
            unload_module(layer)
    linears = {name: shape for name, shape in pulls.linears.items() if f"{name}.weight" not in pulls.tensors}
    return LayerLinears(linears, sorted(pulls.stacks))
