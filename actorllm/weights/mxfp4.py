"""Linears of 4-bit floats in blocks with a common exponent, as gpt-oss's experts are stored.

Legend: O outputs, I inputs (of a linear, or of a block of one), B blocks of inputs.
"""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from actorllm.errors import CheckpointError
from actorllm.weights.formats import PlainFormat, TensorReader
from actorllm.weights.linear_weight import DenseWeight, LinearWeight
from actorllm.weights.source import Part


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

    def num_values(self, name: str, shape: tuple[int, ...], *, is_scaled: bool = False) -> int:
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
