"""A weight source that remembers what was pulled from another one."""

from torch import Tensor

from actorllm.weights.source import LinearWeight, Part, WeightSource


class RecordingWeights:
    """A `WeightSource`; `pulled` has the ranges of rows that were asked for by tensor name, `shapes` each one's whole shape."""

    def __init__(self, inner: WeightSource) -> None:
        self._inner = inner
        self.pulled: dict[str, list[tuple[int, int]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def has(self, name: str) -> bool:
        return self._inner.has(name)

    def tensor(self, name: str, shape: tuple[int, ...], *, rows: Part = None) -> Tensor:
        self._record(name, shape, rows)
        return self._inner.tensor(name, shape, rows=rows)

    def linear(self, name: str, shape: tuple[int, int], *, rows: Part = None, cols: Part = None) -> LinearWeight:
        self._record(f"{name}.weight", shape, rows)
        return self._inner.linear(name, shape, rows=rows, cols=cols)

    def _record(self, name: str, shape: tuple[int, ...], rows: Part) -> None:
        self.pulled.setdefault(name, []).append(rows or (0, shape[0]))
        self.shapes[name] = shape
