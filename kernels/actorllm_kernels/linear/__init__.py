"""Linear layers whose weights take fewer bytes than activations: one operator, whose weights are packed as a device reads them.

`reference` specifies it; `cpu` holds the C++ kernels, `triton` those for GPUs. A `Form` is one way to keep weights. For CPUs
there are `Bf16`, `Int8` and `Int4`, with activations in float32; for GPUs `WeightOnly`, with activations in 16 bits, and `Fp8`,
which rounds both to 8-bit floats. On CPUs a row's result never depends on the other rows, but for what AMX does with several
rows: the order in which it sums floats (`Bf16`, `Int4`), fewer digits for groups whose scale is below 2^-15 of the largest of
their output (`Int4`), and at the ends of float32: what is below the smallest normal float, also as part of a value, counts as
zero, and sums that leave its range may be NaN where others are infinite, or finite in another order.

Legend: T rows (tokens), I inputs, O outputs, G groups of inputs.
"""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from actorllm_kernels.backends import takes_triton
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.linear import cpu, reference
from actorllm_kernels.linear.reference import IntWeight

__all__ = ["Bf16", "Form", "Fp8", "Int4", "Int8", "IntWeight", "WeightOnly"]

Tensors = tuple[Tensor, ...]


class Form(Protocol):
    """Weights as codes, whose tensors all begin with the outputs, and packed as products read them.

    `bits_per_value` counts the codes with their scales.
    """

    name: str
    bits_per_value: float

    def codes(self, w_OI: Tensor) -> Tensors:
        """The codes of a matrix of floating-point values."""
        ...

    def kept(self, codes_OI: Tensor, scales_OG: Tensor, *, num_bits: int) -> Tensors | None:
        """Integer codes as they are, without a change of any value; None where this form has others. G equal groups."""
        ...

    def values(self, codes: Tensors) -> Tensor:
        """[O, I] float32: what the codes stand for."""
        ...

    def values_of(self, codes: Tensors, outputs: Tensor) -> Tensor:
        """[len(outputs), I] float32: rows of the matrix."""
        ...

    def pack(self, codes: Tensors) -> Tensors:
        """The codes as `linear` and `rows` take them."""
        ...

    def rows(self, packed: Tensors, outputs: Tensor, num_inputs: int) -> Tensor:
        """[len(outputs), I] float32: rows of the matrix."""
        ...

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        """[T, O] in x's dtype: `x @ w.T`; the fastest way there is here."""
        ...

    def gated(self, x_TI: Tensor, packed: Tensors, num_outputs: int, product: GatedProduct) -> Tensor:
        """[T, O / 2]: the product of the halves of `linear`'s outputs, of which the first are the gates."""
        ...

    def by_output(self, packed: Tensors) -> tuple[Tensor, Tensor] | None:
        """Codes [O, ..] and scales [O, G] as `experts.MatrixStack` has them of one expert; None where they lie in panels."""
        ...


class Bf16:
    """The upper halves of float32: exact for weights that were trained or stored as bfloat16."""

    name = "bfloat16"
    bits_per_value = 16.0

    def codes(self, w_OI: Tensor) -> Tensors:
        return (reference.bf16_codes(w_OI),)

    def kept(self, codes_OI: Tensor, scales_OG: Tensor, *, num_bits: int) -> Tensors | None:
        return None

    def values(self, codes: Tensors) -> Tensor:
        return codes[0].float()

    def values_of(self, codes: Tensors, outputs: Tensor) -> Tensor:
        return cpu.code_rows_bf16(codes[0], outputs) if cpu.suits_lookup(codes[0], outputs) else codes[0][outputs].float()

    def pack(self, codes: Tensors) -> Tensors:
        return (reference.pack_bf16(codes[0]),)

    def rows(self, packed: Tensors, outputs: Tensor, num_inputs: int) -> Tensor:
        return (cpu if cpu.suits_lookup(packed[0], outputs) else reference).rows_bf16(packed[0], outputs, num_inputs)

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        return (cpu if cpu.suits(x_TI) else reference).linear_bf16(x_TI, packed[0], num_outputs)

    def gated(self, x_TI: Tensor, packed: Tensors, num_outputs: int, product: GatedProduct) -> Tensor:
        if cpu.suits(x_TI) and cpu.knows(product):
            return cpu.linear_bf16(x_TI, packed[0], num_outputs, product)
        return product.of_halves(self.linear(x_TI, packed, num_outputs))

    def by_output(self, packed: Tensors) -> tuple[Tensor, Tensor] | None:
        return None


class Int8:
    """Codes of 8 bits with a scale for each output; a row of activations is rounded to 8 bits, too, with its own scale."""

    name = "int8"
    bits_per_value = 8.0

    def codes(self, w_OI: Tensor) -> Tensors:
        return reference.int8_codes(w_OI)

    def kept(self, codes_OI: Tensor, scales_OG: Tensor, *, num_bits: int) -> Tensors | None:
        return (codes_OI, scales_OG[:, 0].to(torch.float32)) if num_bits == 8 and scales_OG.shape[1] == 1 else None

    def values(self, codes: Tensors) -> Tensor:
        return codes[0] * codes[1].unsqueeze(1)

    def values_of(self, codes: Tensors, outputs: Tensor) -> Tensor:
        if cpu.suits_lookup(codes[0], outputs):
            return cpu.code_rows_int8(codes[0], codes[1], outputs)
        return self.values((codes[0][outputs], codes[1][outputs]))

    def pack(self, codes: Tensors) -> Tensors:
        return reference.pack_int8(codes[0], codes[1])

    def rows(self, packed: Tensors, outputs: Tensor, num_inputs: int) -> Tensor:
        return (cpu if cpu.suits_lookup(packed[0], outputs) else reference).rows_int8(packed[0], packed[1], outputs, num_inputs)

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        return (cpu if cpu.suits_codes(x_TI) else reference).linear_int8(x_TI, packed[0], packed[1], num_outputs)

    def gated(self, x_TI: Tensor, packed: Tensors, num_outputs: int, product: GatedProduct) -> Tensor:
        if cpu.suits_codes(x_TI) and cpu.knows(product):
            return cpu.linear_int8(x_TI, packed[0], packed[1], num_outputs, product)
        return product.of_halves(self.linear(x_TI, packed, num_outputs))

    def by_output(self, packed: Tensors) -> tuple[Tensor, Tensor] | None:
        return None


class Int4:
    """Codes of 4 bits with a scale for each `group_len` inputs of an output; activations as with int8."""

    name = "int4"

    def __init__(self, group_len: int = 32) -> None:
        assert group_len > 0 and group_len % 32 == 0, "the kernel sums 32 inputs at a time"
        self.group_len = group_len
        self.bits_per_value = 4 + 16 / group_len

    def codes(self, w_OI: Tensor) -> Tensors:
        return reference.int4_codes(w_OI, self.group_len)

    def kept(self, codes_OI: Tensor, scales_OG: Tensor, *, num_bits: int) -> Tensors | None:
        group_len = codes_OI.shape[1] // scales_OG.shape[1]
        if num_bits != 4 or group_len % self.group_len:
            return None
        halves_OG = scales_OG.to(torch.bfloat16)
        if halves_OG.device.type != "meta" and not torch.equal(halves_OG.to(scales_OG.dtype), scales_OG):
            return None
        return codes_OI, halves_OG.repeat_interleave(group_len // self.group_len, dim=1)

    def values(self, codes: Tensors) -> Tensor:
        return reference.int4_values(codes[0], codes[1], self.group_len)

    def values_of(self, codes: Tensors, outputs: Tensor) -> Tensor:
        return self.values((codes[0][outputs], codes[1][outputs]))

    def pack(self, codes: Tensors) -> Tensors:
        return reference.pack_int4(codes[0], codes[1], self.group_len)

    def rows(self, packed: Tensors, outputs: Tensor, num_inputs: int) -> Tensor:
        return (cpu if cpu.suits_lookup(packed[0], outputs) else reference).rows_int4(packed[0], packed[1], outputs, num_inputs)

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        return (cpu if cpu.suits_codes(x_TI) else reference).linear_int4(x_TI, packed[0], packed[1], num_outputs)

    def gated(self, x_TI: Tensor, packed: Tensors, num_outputs: int, product: GatedProduct) -> Tensor:
        if cpu.suits_codes(x_TI) and cpu.knows(product):
            return cpu.linear_int4(x_TI, packed[0], packed[1], num_outputs, product)
        return product.of_halves(self.linear(x_TI, packed, num_outputs))

    def by_output(self, packed: Tensors) -> tuple[Tensor, Tensor] | None:
        return None


class Fp8:
    """8-bit floats (e4m3) with a scale for each output; a row of activations is rounded to them, too, with its own. For GPUs."""

    name = "fp8"
    bits_per_value = 8.0

    def codes(self, w_OI: Tensor) -> Tensors:
        return reference.fp8_codes(w_OI)

    def kept(self, codes_OI: Tensor, scales_OG: Tensor, *, num_bits: int) -> Tensors | None:
        return None

    def values(self, codes: Tensors) -> Tensor:
        return reference.fp8_values(codes[0], codes[1])

    def values_of(self, codes: Tensors, outputs: Tensor) -> Tensor:
        return self.values((codes[0][outputs], codes[1][outputs]))

    def pack(self, codes: Tensors) -> Tensors:
        return codes[0].contiguous(), codes[1].contiguous()

    def rows(self, packed: Tensors, outputs: Tensor, num_inputs: int) -> Tensor:
        return reference.fp8_values(packed[0][outputs], packed[1][outputs])

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        if takes_triton("linear", x_TI, self.name):
            from actorllm_kernels.linear import triton_fp8  # takes a second, and is not there without a GPU

            if triton_fp8.suits(x_TI):
                return triton_fp8.linear_fp8(x_TI, packed[0], packed[1])
        return reference.linear_fp8(x_TI, packed[0], packed[1])

    def gated(self, x_TI: Tensor, packed: Tensors, num_outputs: int, product: GatedProduct) -> Tensor:
        return product.of_halves(self.linear(x_TI, packed, num_outputs))

    def by_output(self, packed: Tensors) -> tuple[Tensor, Tensor] | None:
        return packed[0].view(torch.float8_e4m3fn), packed[1].unsqueeze(1)


class WeightOnly:
    """Integer codes of 8 bits with a scale for each output, or of 4 bits for each `GROUP_LEN` inputs, for GPUs.

    Stored codes are kept whatever their groups. Activations are not rounded, unlike on CPUs: there is nothing to gain by it where
    reading the weights is what a step waits for. Packed as `IntWeight`.
    """

    GROUP_LEN = 128
    """Wider than the CPU's: a tile of the kernel does not cross groups, and narrow ones read memory in small pieces."""

    def __init__(self, num_bits: int) -> None:
        assert num_bits in (4, 8)
        self.name = f"int{num_bits}"
        self.num_bits = num_bits
        self.bits_per_value = 8.0 if num_bits == 8 else 4 + 32 / self.GROUP_LEN

    def codes(self, w_OI: Tensor) -> Tensors:
        if self.num_bits == 8:
            codes_OI, scales_O = reference.int8_codes(w_OI)
            return codes_OI, scales_O.unsqueeze(1)
        group_len = math.gcd(w_OI.shape[1] // 2, self.GROUP_LEN)
        if group_len < reference.LEAST_GROUP or w_OI.shape[1] % 2:
            group_len = max(1, w_OI.shape[1])
        return reference.int4_codes(w_OI, group_len)

    def kept(self, codes_OI: Tensor, scales_OG: Tensor, *, num_bits: int) -> Tensors | None:
        return (codes_OI, scales_OG) if num_bits == self.num_bits else None

    def values(self, codes: Tensors) -> Tensor:
        return IntWeight(*codes).values()

    def values_of(self, codes: Tensors, outputs: Tensor) -> Tensor:
        return self.values((codes[0][outputs], codes[1][outputs]))

    def pack(self, codes: Tensors) -> Tensors:
        weight = reference.pack_by_output(codes[0], codes[1], num_bits=self.num_bits)
        return weight.codes_OI, weight.scales_OG

    def rows(self, packed: Tensors, outputs: Tensor, num_inputs: int) -> Tensor:
        return IntWeight(*packed).rows(outputs).values()[:, :num_inputs]

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        weight = IntWeight(*packed)
        if x_TI.shape[1] < weight.num_inputs:
            x_TI = pad(x_TI, (0, weight.num_inputs - x_TI.shape[1]))
        if takes_triton("linear", x_TI, weight.form):
            from actorllm_kernels.linear import triton  # takes a second, and is not there without a GPU

            if triton.suits(x_TI, weight):
                return triton.linear_weight_only(x_TI, weight)
        return reference.linear_weight_only(x_TI, weight)

    def gated(self, x_TI: Tensor, packed: Tensors, num_outputs: int, product: GatedProduct) -> Tensor:
        return product.of_halves(self.linear(x_TI, packed, num_outputs))

    def by_output(self, packed: Tensors) -> tuple[Tensor, Tensor] | None:
        return packed[0], packed[1]
