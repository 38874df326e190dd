"""A weight source that remembers what was pulled from another one."""

from collections.abc import Iterator

from torch import Tensor

from actorllm.weights.linear_weight import LinearWeight
from actorllm.weights.source import Part, WeightSource


class RecordingWeights:
    """A `WeightSource`; `pulled` has the ranges of rows that were asked for by tensor name, out of `num_rows`; `shapes` has each
    one's whole shape."""

    def __init__(self, inner: WeightSource) -> None:
        self._inner = inner
        self.pulled: dict[str, list[tuple[int, int]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.num_rows: dict[str, int] = {}

    def has(self, name: str) -> bool:
        return self._inner.has(name)

    def tensor(self, name: str, shape: tuple[int, ...], *, rows: Part = None) -> Tensor:
        self._record(name, shape, rows=rows, num_rows=shape[0])
        return self._inner.tensor(name, shape, rows=rows)

    def linear(self, name: str, shape: tuple[int, int], *, rows: Part = None, cols: Part = None) -> LinearWeight:
        self._record(f"{name}.weight", shape, rows=rows, num_rows=shape[0])
        return self._inner.linear(name, shape, rows=rows, cols=cols)

    def table(self, name: str, shape: tuple[int, int], *, rows: Part = None) -> LinearWeight:
        self._record(f"{name}.weight", shape, rows=rows, num_rows=shape[0])
        return self._inner.table(name, shape, rows=rows)

    def stack(self, name: str, shape: tuple[int, int, int], *, rows: Part = None, cols: Part = None) -> Iterator[LinearWeight]:
        self._record(name, shape, rows=rows, num_rows=shape[1])
        return self._inner.stack(name, shape, rows=rows, cols=cols)

    def _record(self, name: str, shape: tuple[int, ...], *, rows: Part, num_rows: int) -> None:
        self.pulled.setdefault(name, []).append(rows or (0, num_rows))
        self.shapes[name] = shape
        self.num_rows[name] = num_rows
