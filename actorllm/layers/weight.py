"""A plain tensor of the checkpoint: for what an architecture learns and no other layer here has. Knows nothing of its use."""

from torch import Tensor, nn

from actorllm.weights.source import Part, WeightSource


class Weight(nn.Module):
    """The checkpoint's tensor of this module's own name: `self.gate = Weight((8,))` in a layer is `...layers.0.gate`.

    `shape` is the whole tensor's; with `rows`, a half-open range, a rank holds that part of it (its heads', by a `HeadSplit`),
    else all of it.
    """

    def __init__(self, shape: tuple[int, ...], *, rows: Part = None) -> None:
        super().__init__()
        self.shape = shape
        self.rows = rows
        self.value: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        self.value = source.tensor(prefix.removesuffix("."), self.shape, rows=self.rows)

    def unload(self) -> None:
        self.value = None

    def forward(self) -> Tensor:
        """The tensor, in the model's dtype on its device."""
        assert self.value is not None, "the layer has no weights yet"
        return self.value
