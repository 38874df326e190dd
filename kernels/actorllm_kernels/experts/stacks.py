"""The weights of all experts in one place: as values, or as codes that take fewer bytes. Knows no kernel.

Legend: E experts, O outputs and I inputs of a matrix, G groups of an output's inputs, D hidden size, J = 2 * an inner size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actorllm_kernels.linear import Form, IntWeight
from actorllm_kernels.quantize import dequantize


@dataclass(frozen=True)
class MatrixStack:
    """One matrix of every expert: `values_EOI` in floating point, or codes with float32 `scales_EOG` for G groups of inputs.

    Codes are int8; uint8 of two with 4 bits each, packed as in `IntWeight`; or float8_e4m3fn, with one group.
    """

    values_EOI: Tensor
    scales_EOG: Tensor | None = None

    @classmethod
    def of_codes(cls, form: Form, weights_EOI: Tensor) -> "MatrixStack":
        """The codes of floating-point weights, in a form that keeps them output by output. Raises `ValueError` for others."""
        parts = [form.by_output(form.pack(form.codes(weight_OI))) for weight_OI in weights_EOI]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            raise ValueError(f"{form.name} keeps weights in panels, which cannot be stacked")
        codes, scales = zip(*found, strict=True)
        as_bytes = torch.stack([each.view(torch.uint8) for each in codes])  # 8-bit floats cannot be stacked everywhere
        return cls(as_bytes.view(codes[0].dtype), torch.stack(scales))

    @property
    def is_packed(self) -> bool:
        """Whether there are two codes in a byte."""
        return self.values_EOI.dtype == torch.uint8

    @property
    def num_inputs(self) -> int:
        """I."""
        return self.values_EOI.shape[2] * (2 if self.is_packed else 1)

    @property
    def num_groups(self) -> int:
        """G."""
        return 1 if self.scales_EOG is None else self.scales_EOG.shape[2]

    @property
    def group_len(self) -> int:
        """Inputs with one scale."""
        return self.num_inputs // self.num_groups

    @property
    def num_bits(self) -> int:
        """Of one value or code."""
        return 4 if self.is_packed else 8 * self.values_EOI.element_size()

    @property
    def form(self) -> str:
        """What kernels are checked for."""
        if self.scales_EOG is None:
            return "values"
        kind = "fp8" if self.values_EOI.is_floating_point() else f"int{self.num_bits}"
        return kind + (" in groups" if self.num_groups > 1 else "")

    def matrix(self, expert: int, dtype: torch.dtype) -> Tensor:
        """[O, I] of one expert."""
        values_OI = self.values_EOI[expert]
        if self.scales_EOG is None:
            return values_OI
        scales_OG = self.scales_EOG[expert]
        if values_OI.is_floating_point():
            return dequantize(values_OI, scales_OG[:, 0]).to(dtype)
        return IntWeight(values_OI, scales_OG).values().to(dtype)


@dataclass(frozen=True)
class ExpertStack:
    """All experts' weights: gates, then ups (in turns where `is_interleaved`), and outputs; None for biases it lacks."""

    gate_up: MatrixStack
    down: MatrixStack
    gate_up_bias_EJ: Tensor | None = None
    down_bias_ED: Tensor | None = None
    is_interleaved: bool = False

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.down.values_EOI)

    @property
    def sizes(self) -> tuple[int, int]:
        """D, and the inner size of an expert."""
        return self.down.values_EOI.shape[1], self.gate_up.values_EOI.shape[1] // 2
