"""A weight source that remembers what was pulled from another one."""

from torch import Tensor

from actorllm.weights.source import LinearWeight, Part, WeightSource


class RecordingWeights:
    """A `WeightSource`; `pulled` lists tensor names in order, `shapes` the whole shape of each."""

    def __init__(self, inner: WeightSource) -> None:
        self._inner = inner
        self.pulled: list[str] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def has(self, name: str) -> bool:
        return self._inner.has(name)

    def tensor(self, name: str, shape: tuple[int, ...], *, rows: Part = None) -> Tensor:
        self._record(name, shape)
        return self._inner.tensor(name, shape, rows=rows)

    def linear(self, name: str, shape: tuple[int, int], *, rows: Part = None, cols: Part = None) -> LinearWeight:
        self._record(f"{name}.weight", shape)
        return self._inner.linear(name, shape, rows=rows, cols=cols)

    def _record(self, name: str, shape: tuple[int, ...]) -> None:
        self.pulled.append(name)
        self.shapes[name] = shape
