"""Where layers pull their weights from: by name, and only their own part.

The unit of pull is a linear, or a stack of them, so that a quantized format owns its packing (formats.py); plain tensors
(norms, embeddings, biases) are pulled as tensors. Knows no model, no file and no format.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import Tensor, nn

from actorllm.errors import TensorMissing
from actorllm.weights.linear_weight import LinearWeight

Part = tuple[int, int] | None
MAX_SHOWN = 10


class WeightSource(Protocol):
    """A checkpoint, as layers see it. `rows` and `cols` are half-open ranges of the whole tensor (None: all).

    Every pull claims the name. Raises `TensorMissing` or `CheckpointError` (a shape that contradicts `shape`).
    """

    def tensor(self, name: str, shape: tuple[int, ...], *, rows: Part = None) -> Tensor:
        """Rows of a plain tensor in the model's dtype on its device; `shape` is the whole tensor's."""
        ...

    def linear(self, name: str, shape: tuple[int, int], *, rows: Part = None, cols: Part = None) -> LinearWeight:
        """A part of the linear [out, in] called `name`, in its internal form; a format knows its tensors' names."""
        ...

    def table(self, name: str, shape: tuple[int, int], *, rows: Part = None) -> LinearWeight:
        """The embedding or the head [vocabulary, hidden] called `name`, which a format may keep finer than other linears; rows of
        an embedding are looked up, and a tied head multiplies by it."""
        ...

    def stack(self, name: str, shape: tuple[int, int, int], *, rows: Part = None, cols: Part = None) -> Iterator[LinearWeight]:
        """The same part of each linear of the stack [number, out, in] called `name` (experts), read one by one."""
        ...

    def has(self, name: str) -> bool:
        """Whether a tensor of this name exists."""
        ...


class Loadable(Protocol):
    """A module that pulls its own weights; `prefix` is its qualified name (with a final dot unless empty)."""

    def load(self, source: WeightSource, prefix: str) -> None: ...
    def unload(self) -> None: ...


def load_module(module: nn.Module, source: WeightSource, prefix: str = "") -> None:
    """Pull the weights of every loadable module inside `module`, whose qualified name is `prefix`.

    Raises one `TensorMissing` that names what all of them lacked.
    """
    missing: list[str] = []
    for name, loadable in _loadables(module):
        try:
            loadable.load(source, ".".join(part for part in (prefix, name) if part) + ".")
        except TensorMissing as error:
            missing.append(error.message)
    if missing:
        rest = f"; and {len(missing) - MAX_SHOWN} more" if len(missing) > MAX_SHOWN else ""
        raise TensorMissing("; ".join(missing[:MAX_SHOWN]) + rest)


def unload_module(module: nn.Module) -> None:
    """Drop the weights of every loadable module inside `module`; its memory is free afterwards."""
    for _, loadable in _loadables(module):
        loadable.unload()


def _loadables(module: nn.Module) -> "Iterable[tuple[str, Loadable]]":
    return [(name, child) for name, child in module.named_modules() if hasattr(child, "load")]  # type: ignore[misc]
