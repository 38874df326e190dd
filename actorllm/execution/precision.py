"""In which precision a model computes, and how its linears are kept: from what was asked, the checkpoint and the device."""

from dataclasses import dataclass

import torch

from actorllm.errors import SettingsError
from actorllm_kernels.linear import Bf16, Form, Fp8, Int4, Int8, WeightOnly

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FP8_CAPABILITY = (8, 9)
"""The first compute capability whose matrix units take 8-bit floats."""

WIDE_GROUP = 128
"""Inputs that share a scale of 4-bit codes which are kept as a checkpoint has them: fewer scales to read than with 32."""

KV_DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""The formats of a KV cache that is not kept as computed, by what `--kv-cache` calls them."""


@dataclass(frozen=True)
class Precision:
    """`dtype` is that of activations and plain tensors; linears are kept in `form`, embeddings and heads in `table_form`, or
    both in `dtype` too. `kept_form`, if there is one, is that of linears whose codes stay as a checkpoint has them."""

    dtype: torch.dtype
    form: Form | None = None
    table_form: Form | None = None
    kept_form: Form | None = None

    @property
    def name(self) -> str:
        """Of the linears' values, as users know it."""
        return str(self.dtype).removeprefix("torch.") if self.form is None else self.form.name


def check_fp8(device: torch.device) -> None:
    """Raises `SettingsError` where no unit multiplies 8-bit floats."""
    if device.type == "cpu":
        raise SettingsError("--quantize fp8 is for GPUs: use --quantize int8 on processors")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < FP8_CAPABILITY:
        raise SettingsError(
            f"--quantize fp8 needs a GPU of compute capability {'.'.join(map(str, FP8_CAPABILITY))} or later, but {device} has "
            f"{major}.{minor}: use --quantize int8"
        )


def resolve_precision(
    wanted: str, stored: torch.dtype, *, device: torch.device, quantize: str | None = None, group_len: int | None = None
) -> Precision:
    """The precision for `--dtype` `wanted`, `--quantize` and a checkpoint in `stored`, or in 4-bit codes that can be kept, with a scale
    for each `group_len` inputs. Raises `SettingsError`.

    "auto" keeps a half-precision checkpoint in half precision on GPUs: all in bfloat16. Processors keep bfloat16 weights, which is
    exact and half of what is read for a token, and compute in float32; they serve float16 in float32. With 4-bit linears embeddings
    and heads have 8 bits: they decide the quality, and are few. Quantized to integers, processors round activations, too, and GPUs
    do not; as 8-bit floats they do. On processors 4-bit linears have groups of 32; codes that are kept have
    groups of 128 where the checkpoint's are multiples of that.
    """
    if quantize == "fp8":
        check_fp8(device)
        return Precision(torch.bfloat16 if wanted == "auto" else DTYPES[wanted], Fp8(), WeightOnly(8))
    if quantize is not None and device.type == "cpu":
        if wanted == "bfloat16":
            raise SettingsError(f"--quantize {quantize} keeps weights in {quantize}: leave out --dtype bfloat16")
        if quantize == "int8":
            return Precision(torch.float32, Int8(), Int8())
        is_wide = group_len is not None and group_len % WIDE_GROUP == 0
        return Precision(torch.float32, Int4(), Int8(), kept_form=Int4(WIDE_GROUP) if is_wide else None)
    if quantize is not None:
        dtype = torch.bfloat16 if wanted == "auto" else DTYPES[wanted]
        return Precision(dtype, WeightOnly(8 if quantize == "int8" else 4), WeightOnly(8))
    if wanted == "auto":
        is_half = stored == torch.bfloat16 or (stored == torch.float16 and device.type != "cpu")
        wanted = "bfloat16" if is_half else "float32"
    if wanted == "bfloat16" and device.type == "cpu":
        return Precision(torch.float32, Bf16(), Bf16())
    return Precision(DTYPES[wanted])


def resolve_kv_dtype(wanted: str, *, device: torch.device) -> torch.dtype | None:
    """The dtype of the KV cache for `--kv-cache` `wanted`, or None for the model's own. Raises `SettingsError`."""
    if wanted == "fp8" and device.type == "cpu":
        raise SettingsError("--kv-cache fp8 is for GPUs; use --kv-cache int8 on a processor, which takes the same memory")
    if wanted == "bf16" and device.type != "cpu":
        raise SettingsError("--kv-cache bf16 is for processors, which compute in float32; on a GPU leave it out: it is as --dtype says")
    return KV_DTYPES.get(wanted)
