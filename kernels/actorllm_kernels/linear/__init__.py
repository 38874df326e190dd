"""Linear layers whose weights take fewer bytes than float32: `reference` specifies them, `cpu` holds the C++ kernels.

Activations stay float32. A row's result never depends on the other rows. A `Form` is one way to keep weights.
Legend: T rows (tokens), I inputs, O outputs.
"""

from typing import Protocol

from torch import Tensor

from actorllm_kernels.linear import cpu, reference

__all__ = ["Bf16", "Form"]

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

    def rows(self, packed: Tensors, outputs: Tensor) -> Tensor:
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

    def rows(self, packed: Tensors, outputs: Tensor) -> Tensor:
        return reference.rows_bf16(packed[0], outputs)

    def linear(self, x_TI: Tensor, packed: Tensors, num_outputs: int) -> Tensor:
        return (cpu if cpu.suits(x_TI) else reference).linear_bf16(x_TI, packed[0], num_outputs)
