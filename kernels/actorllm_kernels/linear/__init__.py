"""Linear layers whose weights take fewer bytes than float32: `reference` specifies them, `cpu` holds the C++ kernels.

Activations stay float32. A row's result never depends on the other rows. A `Form` is one way to keep weights.
Legend: T rows (tokens), I inputs, O outputs.
"""

from typing import Protocol

from torch import Tensor

from actorllm_kernels.linear import cpu, reference

__all__ = ["Bf16", "Form", "Int4", "Int8"]

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

    def values(self, codes: Tensors) -> Tensor:
        """[O, I] float32: what the codes stand for."""
        ...

    def pack(self, codes: Tensors) -> Tensors:
        """The codes as `linear` and `rows` take them."""
        ...

    def rows(self, packed: Tensors, outputs: Tensor, num_inputs: int) -> Tensor:
        """[len(outputs), I] float32: rows of the matrix."""
        ...

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        """[T, O] float32: `x @ w.T` of float32 rows; the fastest way there is here."""
        ...


class Bf16:
    """The upper halves of float32: exact for weights that were trained or stored as bfloat16."""

    name = "bfloat16"
    bits_per_value = 16.0

    def codes(self, w_OI: Tensor) -> Tensors:
        return (reference.bf16_codes(w_OI),)

    def values(self, codes: Tensors) -> Tensor:
        return codes[0].float()

    def pack(self, codes: Tensors) -> Tensors:
        return (reference.pack_bf16(codes[0]),)

    def rows(self, packed: Tensors, outputs: Tensor, num_inputs: int) -> Tensor:
        return reference.rows_bf16(packed[0], outputs)

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        return (cpu if cpu.suits(x_TI) else reference).linear_bf16(x_TI, packed[0], num_outputs)


class Int8:
    """Codes of 8 bits with a scale for each output; a row of activations is rounded to 8 bits, too, with its own scale."""

    name = "int8"
    bits_per_value = 8.0

    def codes(self, w_OI: Tensor) -> Tensors:
        return reference.int8_codes(w_OI)

    def values(self, codes: Tensors) -> Tensor:
        return codes[0] * codes[1].unsqueeze(1)

    def pack(self, codes: Tensors) -> Tensors:
        return reference.pack_int8(codes[0], codes[1])

    def rows(self, packed: Tensors, outputs: Tensor, num_inputs: int) -> Tensor:
        return reference.rows_int8(packed[0], packed[1], outputs, num_inputs)

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        return (cpu if cpu.suits(x_TI) else reference).linear_int8(x_TI, packed[0], packed[1], num_outputs)


class Int4:
    """Codes of 4 bits with a scale for each `group_len` inputs of an output; activations as with int8."""

    name = "int4"

    def __init__(self, group_len: int = 32) -> None:
        assert group_len > 0 and group_len % 32 == 0, "the kernel sums 32 inputs at a time"
        self.group_len = group_len
        self.bits_per_value = 4 + 16 / group_len

    def codes(self, w_OI: Tensor) -> Tensors:
        return reference.int4_codes(w_OI, self.group_len)

    def values(self, codes: Tensors) -> Tensor:
        return reference.int4_values(codes[0], codes[1], self.group_len)

    def pack(self, codes: Tensors) -> Tensors:
        return reference.pack_int4(codes[0], codes[1], self.group_len)

    def rows(self, packed: Tensors, outputs: Tensor, num_inputs: int) -> Tensor:
        return reference.rows_int4(packed[0], packed[1], outputs, num_inputs)

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        return (cpu if cpu.suits(x_TI) else reference).linear_int4(x_TI, packed[0], packed[1], num_outputs)
