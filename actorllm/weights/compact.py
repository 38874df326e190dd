"""Linears that take fewer bytes than the model's precision, and the formats that make them of any other as it is read.

The device decides how they are packed, and in which precision activations are (`actorllm_kernels.linear`). Codes that a checkpoint
holds are kept where the form has the same ones, so that nothing is rounded twice.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from actorllm.weights.compressed import CompressedFormat
from actorllm.weights.formats import Format, PlainFormat, TensorReader
from actorllm.weights.int_codes import IntCodes
from actorllm.weights.linear_weight import DenseWeight, LinearWeight, joined
from actorllm.weights.source import Part
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.linear import Form

PIECE_VALUES = 2**22
"""Of a linear that are read at once to become codes: memory for their values is needed meanwhile."""


class CompactWeight(LinearWeight):
    """A weight as codes of `form`, whose tensors all begin with the outputs. It is packed before it computes."""

    def __init__(self, form: Form, codes: tuple[Tensor, ...], *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.form = form
        self.codes = codes
        self.dtype = dtype
        self.out_features = len(codes[0])

    def packed(self) -> "PackedWeight":
        shape = (self.out_features, self.codes[0].shape[1])
        return PackedWeight(self.form, self.form.pack(self.codes), shape=shape, dtype=self.dtype)

    def packed_table(self) -> "PackedWeight":
        return self.packed()

    def dense(self) -> Tensor:
        return self.form.values(self.codes).to(self.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        return self.form.values_of(self.codes, ids).to(self.dtype)

    def outputs(self, begin: int, end: int) -> "CompactWeight":
        return CompactWeight(self.form, tuple(codes[begin:end] for codes in self.codes), dtype=self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.packed()(x)

    @classmethod
    def join(cls, parts: list[LinearWeight]) -> "CompactWeight | None":
        compact = [part for part in parts if isinstance(part, CompactWeight)]
        if len({(part.form.name, *(codes.shape[1:] for codes in part.codes)) for part in compact}) > 1:  # other forms, or groups
            return None
        return join_codes(compact)


def join_codes(parts: Sequence[CompactWeight]) -> CompactWeight:
    """All outputs of `parts`, which have one form and the same groups."""
    if len(parts) == 1:
        return parts[0]
    codes = tuple(map(joined, zip(*(part.codes for part in parts), strict=True)))
    return CompactWeight(parts[0].form, codes, dtype=parts[0].dtype)


class PackedWeight(LinearWeight):
    """A weight packed as the product reads it; its rows can still be looked up."""

    def __init__(
        self, form: Form, tensors: tuple[Tensor, ...], *, shape: tuple[int, int], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.form = form
        self.tensors = tensors
        self.dtype = dtype
        self.out_features, self.in_features = shape

    def rows(self, ids: Tensor) -> Tensor:
        return self.form.rows(self.tensors, ids, self.in_features).to(self.dtype)

    def by_output(self) -> tuple[Tensor, Tensor] | None:
        return self.form.by_output(self.tensors)

    def forward(self, x: Tensor) -> Tensor:
        return self.form.linear(x, self.tensors, self.out_features)

    def gated(self, x: Tensor, product: GatedProduct) -> Tensor:
        return self.form.gated(x, self.tensors, self.out_features, product)


class CompactFormat:
    """Every linear and stack of another format as codes of `form`, embeddings and heads as codes of `table_form`; the rest stays
    in the model's precision, `dtype`. A linear's integer codes of that format stay as they are where `kept_form` has the same."""

    def __init__(
        self,
        stored: Format,
        form: Form,
        *,
        table_form: Form | None = None,
        kept_form: Form | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._stored = stored
        self._form = form
        self._table_form = table_form or form
        self._kept_form = kept_form or form
        self._dtype = dtype

    def linear(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> LinearWeight:
        stored = self._stored.codes(reader, name, shape=shape, rows=rows, cols=cols)
        if stored is None:
            return self._by_pieces(partial(self._stored.linear, reader, name, shape=shape, cols=cols), shape, rows=rows, form=self._form)
        if stored.codes_OI.device.type == "meta":
            return DenseWeight(stored.dense(self._dtype))
        return kept(stored, self._kept_form, dtype=self._dtype) or self._compact(DenseWeight(stored.dense(self._dtype)), self._form)

    def codes(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> IntCodes | None:
        return self._stored.codes(reader, name, shape=shape, rows=rows, cols=cols)

    def table(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part) -> LinearWeight:
        return self._by_pieces(partial(self._stored.table, reader, name, shape=shape), shape, rows=rows, form=self._table_form)

    def stack(
        self, reader: TensorReader, name: str, *, shape: tuple[int, int, int], rows: Part, cols: Part
    ) -> Iterator[LinearWeight]:
        for weight in self._stored.stack(reader, name, shape=shape, rows=rows, cols=cols):
            yield self._compact(weight, self._form)

    def num_values(self, name: str, shape: tuple[int, ...], *, is_scaled: bool = False) -> int:
        """In units of values of `dtype`, which the codes are a fraction of."""
        whole = self._stored.num_values(name, shape, is_scaled=is_scaled)
        form = self._kept_form if is_scaled or name.endswith(".weight_packed") else self._form
        return whole if len(shape) < 2 else int(whole * form.bits_per_value / (8 * self._dtype.itemsize))

    def _by_pieces(self, read: Callable[..., LinearWeight], shape: tuple[int, int], *, rows: Part, form: Form) -> LinearWeight:
        """A linear's codes, of some rows after another: a vocabulary's values take several times what its codes take."""
        begin, end = rows or (0, shape[0])
        step = max(1, PIECE_VALUES // max(1, shape[1]))
        if end - begin <= step:
            return self._compact(read(rows=rows), form)
        codes: tuple[Tensor, ...] = ()
        for first in range(begin, end, step):
            piece = self._compact(read(rows=(first, min(first + step, end))), form)
            if not isinstance(piece, CompactWeight):
                return read(rows=rows)
            codes = codes or tuple(part.new_empty(end - begin, *part.shape[1:]) for part in piece.codes)
            for whole, part in zip(codes, piece.codes, strict=True):
                whole[first - begin : first - begin + len(part)] = part
        return CompactWeight(form, codes, dtype=self._dtype)

    def _compact(self, weight: LinearWeight, form: Form) -> LinearWeight:
        """As codes, or, of a survey, as it is: codes of nothing would import torch's compiler."""
        values = weight.dense()
        return weight if values.device.type == "meta" else CompactWeight(form, form.codes(values), dtype=self._dtype)


class CodesFormat(PlainFormat):
    """The integer codes of a compressed checkpoint as they are stored, where `form` has the same; all else as that gives it."""

    def __init__(self, stored: CompressedFormat, form: Form, *, dtype: torch.dtype) -> None:
        self._stored = stored
        self._form = form
        self._dtype = dtype

    def linear(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> LinearWeight:
        stored = self._stored.codes(reader, name, shape=shape, rows=rows, cols=cols)
        if stored is None:
            return super().linear(reader, name, shape=shape, rows=rows, cols=cols)
        return kept(stored, self._form, dtype=self._dtype) or DenseWeight(stored.dense(self._dtype))

    def num_values(self, name: str, shape: tuple[int, ...], *, is_scaled: bool = False) -> int:
        """In units of values of `dtype`: codes take their bits, scales four bytes each."""
        whole = self._stored.num_values(name, shape, is_scaled=is_scaled)
        if not self._stored.can_be_kept:
            return whole
        if name.endswith(".weight_scale"):
            return prod(shape) * torch.float32.itemsize // self._dtype.itemsize
        is_codes = name.endswith(".weight_packed") or is_scaled
        return whole * self._stored.num_bits // (8 * self._dtype.itemsize) if is_codes else whole


def kept(stored: IntCodes, form: Form, *, dtype: torch.dtype) -> CompactWeight | None:
    """Codes as they are in a checkpoint, if they are symmetric, in equal groups, and of the form."""
    if stored.zero_OG is not None or not stored.is_even:
        return None
    codes = form.kept(stored.codes_OI, stored.scale_OG, num_bits=stored.num_bits)
    return None if codes is None else CompactWeight(form, codes, dtype=dtype)
