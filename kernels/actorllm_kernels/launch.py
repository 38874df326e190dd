"""One call of a Triton kernel as a value: it can be run, or compiled for a GPU that is not here.

What is compiled ahead of time is thereby exactly what would be launched. Knows no kernel.
"""

import re
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# pyright: reportMissingImports=false
import torch
import triton
from torch import Tensor
from triton import knobs
from triton import language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from actorllm_kernels.configurations import Configuration

INTERPRETED = knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter (`TRITON_INTERPRET=1`), which needs no GPU. Read once: so does Triton."""
LEAST_SIDE = 16
"""The fewest rows or columns of a tile that matrix units take."""
ALIGNMENT = 16
"""Bytes and counts that are multiples of this let Triton use wide loads."""
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
    torch.float8_e4m3fn: "*fp8e4nv",
}
LANGUAGE_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
"""The dtypes that kernels compute with, by their names in Triton's language."""

FIXED = Configuration((), num_warps=4, num_stages=1)
"""Of kernels that are the same everywhere: without products of matrices there are no stages."""


def product_type(dtype: torch.dtype) -> tl.dtype:
    """What products of numbers of `dtype` are made of: themselves; in the interpreter bfloat16, which NumPy lacks, as float32."""
    return LANGUAGE_TYPES[torch.float32 if INTERPRETED and dtype == torch.bfloat16 else dtype]


def require_dense(**tensors: Tensor | None) -> None:
    """Raise `ValueError` for a tensor whose numbers do not lie one after the other: the kernels know no strides for these."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}, and kernels read it as contiguous")


def require_dense_rows(**tensors: Tensor | None) -> None:
    """Raise `ValueError` for a tensor whose last axis has gaps: the kernels know the strides of other axes alone."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.numel() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} has strides {tensor.stride()}, and kernels read its rows as contiguous")


def dense_rows(x: Tensor) -> Tensor:
    """x, or where its last axis has gaps a copy. For operators: a launch that is kept would go on to read the copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _option(kernel: Any, name: str) -> Collection[str]:
    """What a kernel was given with `triton.jit`; interpreted ones keep it elsewhere."""
    return (kernel.kwargs.get(name) if INTERPRETED else getattr(kernel, name)) or ()


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes: registers per thread, bytes of spills per thread, bytes of shared memory per program; and
    how many products it has that are rounded with their sum."""

    num_registers: int
    spilled_bytes: int
    shared_bytes: int
    num_fused: int


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid, arguments (tensors, numbers, None), compile-time constants, and the compiler's options as `chosen`.

    Where it `is_fused` a product and the sum with it are rounded once: faster, and another digit than torch's at times.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    chosen: Configuration = FIXED
    is_fused: bool = True

    @property
    def options(self) -> dict[str, int]:
        """The compiler's, by Triton's names; each is named, because its defaults change from version to version."""
        chosen = self.chosen
        options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages, "enable_fp_fusion": self.is_fused}
        return options if chosen.max_registers is None else options | {"maxnreg": chosen.max_registers}

    @property
    def name(self) -> str:
        """The kernel's."""
        return self.kernel.fn.__name__

    def run(self) -> None:
        """On the current device and stream; does not wait."""
        self.kernel[self.grid](**self.arguments, **self.constants, **({} if INTERPRETED else self.options))

    @property
    def unaligned(self) -> frozenset[str]:
        """The pointers that may be of any alignment: others than multiples of `ALIGNMENT` have no kernel compiled anew."""
        return frozenset(_option(self.kernel, "do_not_specialize_on_alignment"))

    def specialisation(self) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], list]]:
        """Signature, constants and attributes that a call is compiled for, as Triton has them: others are compiled anew."""
        signature, constants, attributes = {}, {}, {}
        general = _option(self.kernel, "do_not_specialize")
        for index, name in enumerate(self.kernel.arg_names):
            value = self.constants[name] if name in self.constants else self.arguments[name]
            is_specialised = name not in self.constants and name not in general
            if name in self.constants or value is None or (is_specialised and isinstance(value, int) and value == 1):
                signature[name], constants[(index,)] = "constexpr", value
                continue
            signature[name] = TYPES[value.dtype] if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"
            is_aligned = isinstance(value, Tensor) and name not in self.unaligned and value.data_ptr() % ALIGNMENT == 0
            if is_aligned or (is_specialised and isinstance(value, int) and value % ALIGNMENT == 0):
                attributes[(index,)] = [["tt.divisibility", ALIGNMENT]]
        return signature, constants, attributes

    def compiled(self, capability: int) -> Any:
        """Triton's compiled kernel for an NVIDIA GPU of compute capability `capability` (80, 90), specialised as a call is."""
        source = ASTSource(self.kernel, *self.specialisation())
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)

    def resources(self, capability: int) -> Resources:
        """What the kernel takes on such a GPU, as NVIDIA's tool reads it from the code.

        Raises `subprocess.CalledProcessError`.
        """
        kernel = self.compiled(capability)
        with TemporaryDirectory() as name:
            path = Path(name) / "kernel.cubin"
            path.write_bytes(kernel.asm["cubin"])
            command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
            report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
        num_fused = len(re.findall(r"\bfma\.", kernel.asm["ptx"]))
        return Resources(found["REG"], found["STACK"] + found["LOCAL"], kernel.metadata.shared, num_fused)
