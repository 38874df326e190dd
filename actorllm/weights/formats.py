"""How the linears of a checkpoint are stored, and what they become in memory.

A format turns a name, a shape and a part into a `LinearWeight`; it reads whatever tensors it needs for that. Layers never
learn which format they hold.

Legend: O outputs, I inputs (of a linear, or of a block of one), B blocks of inputs.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from actorllm.errors import CheckpointError, UnsupportedConfig
from actorllm.weights.source import DenseWeight, LinearWeight, Part


class TensorReader(Protocol):
    """What a format reads from. Every read claims the name."""

    @property
    def dtype(self) -> torch.dtype:
        """The model's precision."""
        ...

    def has(self, name: str) -> bool:
        """Whether a tensor of this name exists."""
        ...

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        rows: Part = None,
        cols: Part = None,
        index: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A part of a tensor on the model's device; `shape` is the whole tensor's. With `index`, of a stack just this one.

        It is stored in floating point and comes in the model's dtype; with `dtype`, it is stored in just that and comes
        as it is (codes). Raises `TensorMissing` or `CheckpointError`.
        """
        ...


class Format(Protocol):
    """Owns the names, the packing and the alignment of a linear's tensors."""

    def linear(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> LinearWeight:
        """The part `rows` x `cols` of the linear [out, in] called `name`."""
        ...

    def stack(
        self, reader: TensorReader, name: str, *, shape: tuple[int, int, int], rows: Part, cols: Part
    ) -> Iterator[LinearWeight]:
        """The part `rows` x `cols` of each linear of the stack [number, out, in] called `name`."""
        ...

    def num_values(self, name: str, shape: tuple[int, ...]) -> int:
        """How many values a tensor of a checkpoint becomes in memory."""
        ...


class PlainFormat:
    """One tensor `name + ".weight"` of floating-point values; a stack is one tensor called `name`."""

    def linear(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> LinearWeight:
        return DenseWeight(reader.read(f"{name}.weight", shape, rows=rows, cols=cols))

    def stack(
        self, reader: TensorReader, name: str, *, shape: tuple[int, int, int], rows: Part, cols: Part
    ) -> Iterator[LinearWeight]:
        for index in range(shape[0]):
            yield DenseWeight(reader.read(name, shape, index=index, rows=rows, cols=cols))

    def num_values(self, name: str, shape: tuple[int, ...]) -> int:
        return prod(shape)


class Mxfp4Format(PlainFormat):
    """Stacks of 4-bit floats in blocks with a common exponent (OCP Microscaling Formats 1.0), made plain as they are read.

    `name_blocks` [number, O, B, 16] has a block of 32 inputs in 16 bytes, the first of two in the lower bits; `name_scales`
    [number, O, B] has the exponents plus 127. What has no blocks is stored plainly.
    """

    block_len = 32
    magnitudes = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

    def stack(
        self, reader: TensorReader, name: str, *, shape: tuple[int, int, int], rows: Part, cols: Part
    ) -> Iterator[LinearWeight]:
        if not reader.has(f"{name}_blocks"):
            yield from super().stack(reader, name, shape=shape, rows=rows, cols=cols)
            return
        number, num_outputs, num_inputs = shape
        if num_inputs % self.block_len:
            raise CheckpointError(f"{name}: {num_inputs} inputs are no whole number of blocks of {self.block_len}")
        begin, end = cols or (0, num_inputs)
        first, last = begin // self.block_len, -(-end // self.block_len)
        scales_shape = (number, num_outputs, num_inputs // self.block_len)
        for index in range(number):
            bytes_OB = reader.read(
                f"{name}_blocks",
                (*scales_shape, self.block_len // 2),
                index=index,
                rows=rows,
                cols=(first, last),
                dtype=torch.uint8,
            )
            scales_OB = reader.read(f"{name}_scales", scales_shape, index=index, rows=rows, cols=(first, last), dtype=torch.uint8)
            values_OI = self.values(bytes_OB, scales_OB).to(reader.dtype)
            offset = first * self.block_len
            yield DenseWeight(values_OI[:, begin - offset : end - offset].contiguous())

    def num_values(self, name: str, shape: tuple[int, ...]) -> int:
        if name.endswith("_scales"):
            return 0
        return prod(shape) * (2 if name.endswith("_blocks") else 1)

    @classmethod
    def values(cls, bytes_OB: Tensor, scales_OB: Tensor) -> Tensor:
        """[O, I] float32 of [O, B, 16] and [O, B] bytes."""
        magnitudes = torch.tensor(cls.magnitudes, device=bytes_OB.device)
        codes_OBI = torch.stack((bytes_OB & 15, bytes_OB >> 4), dim=-1).flatten(2).to(torch.int64)
        values_OBI = torch.cat((magnitudes, -magnitudes))[codes_OBI]
        return torch.ldexp(values_OBI, scales_OB.to(torch.int32).unsqueeze(-1) - 127).flatten(1)


def stored_format(config: Mapping[str, Any]) -> Format:
    """The format that config.json names in `quantization_config`. Raises `UnsupportedConfig` for one that is not served."""
    settings = config.get("quantization_config")
    if settings is None:
        return PlainFormat()
    if not isinstance(settings, Mapping):
        raise UnsupportedConfig(f"config.json: quantization_config is {settings!r}, but must be an object")
    method = settings.get("quant_method")
    if method != "mxfp4":
        raise UnsupportedConfig(
            f"config.json: weights quantized by {method!r} are not served yet, only by 'mxfp4'; take the unquantized model"
        )
    # Which linears are plain is told by the tensors' names, how the others are computed is ours to choose.
    if unknown := sorted(settings.keys() - {"quant_method", "modules_to_not_convert", "dequantize"}):
        raise UnsupportedConfig(f"config.json: {', '.join(unknown)} in quantization_config is not implemented for mxfp4")
    return Mxfp4Format()
