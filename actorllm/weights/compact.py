"""Linears that take fewer bytes than the model's precision, and the format that makes them of any other as it is read.

Activations stay float32 (`actorllm_kernels.linear`); so this is for CPUs, whose speed is that of reading weights.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from actorllm.weights.formats import Format, TensorReader
from actorllm.weights.linear_weight import LinearWeight
from actorllm.weights.source import Part
from actorllm_kernels.linear import Form


class CompactWeight(LinearWeight):
    """A weight as codes of `form`, whose tensors all begin with the outputs. It is packed before it computes."""

    dtype = torch.float32

    def __init__(self, form: Form, codes: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.form = form
        self.codes = codes
        self.out_features = len(codes[0])

    def packed(self) -> "PackedWeight":
        return PackedWeight(self.form, self.form.pack(self.codes), shape=(self.out_features, self.codes[0].shape[1]))

    def packed_table(self) -> "PackedWeight":
        return self.packed()

    def dense(self) -> Tensor:
        return self.form.values(self.codes)

    def rows(self, ids: Tensor) -> Tensor:
        return self.form.values(tuple(codes[ids] for codes in self.codes))

    def outputs(self, begin: int, end: int) -> "CompactWeight":
        return CompactWeight(self.form, tuple(codes[begin:end] for codes in self.codes))

    def forward(self, x: Tensor) -> Tensor:
        return self.packed()(x)

    @classmethod
    def join(cls, parts: list[LinearWeight]) -> "CompactWeight | None":
        compact = [part for part in parts if isinstance(part, CompactWeight)]
        if len({part.form.name for part in compact}) > 1:
            return None
        return cls(compact[0].form, tuple(map(torch.cat, zip(*(part.codes for part in compact), strict=True))))


class PackedWeight(LinearWeight):
    """A weight packed as the product reads it; its rows can still be looked up."""

    dtype = torch.float32

    def __init__(self, form: Form, tensors: tuple[Tensor, ...], *, shape: tuple[int, int]) -> None:
        super().__init__()
        self.form = form
        self.tensors = tensors
        self.out_features, self.in_features = shape

    def rows(self, ids: Tensor) -> Tensor:
        return self.form.rows(self.tensors, ids, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.form.linear(x, self.tensors, self.out_features)


class CompactFormat:
    """Every linear and stack of another format as codes of `form`, embeddings and heads as codes of `table_form`; the rest stays
    in the model's precision."""

    def __init__(self, stored: Format, form: Form, *, table_form: Form | None = None) -> None:
        self._stored = stored
        self._form = form
        self._table_form = table_form or form

    def linear(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> LinearWeight:
        return self._compact(self._stored.linear(reader, name, shape=shape, rows=rows, cols=cols), self._form)

    def table(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part) -> LinearWeight:
        return self._compact(self._stored.table(reader, name, shape=shape, rows=rows), self._table_form)

    def stack(
        self, reader: TensorReader, name: str, *, shape: tuple[int, int, int], rows: Part, cols: Part
    ) -> Iterator[LinearWeight]:
        for weight in self._stored.stack(reader, name, shape=shape, rows=rows, cols=cols):
            yield self._compact(weight, self._form)

    def num_values(self, name: str, shape: tuple[int, ...]) -> int:
        """In units of float32 values, which the codes are a fraction of."""
        whole = self._stored.num_values(name, shape)
        return whole if len(shape) < 2 else int(whole * self._form.bits_per_value / 32)

    def _compact(self, weight: LinearWeight, form: Form) -> LinearWeight:
        return CompactWeight(form, form.codes(weight.dense()))
