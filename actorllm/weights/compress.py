"""Writes a plain checkpoint's tensors again, some linears among them as integer codes, as compressed-tensors has them.

The tensors pass through one by one: in memory are one of them and the codes of one output file. Knows no model: it is told
which linears there are.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from actorllm.errors import CheckpointError
from actorllm.weights.checkpoint import INDEX_FILE, SINGLE_FILE, open_tensors, tensor_files, tensor_sizes
from actorllm.weights.compressed import METHOD, PACKED
from actorllm.weights.int_codes import IntCodes, pack

MAX_FILE_BYTES = 2**28
"""Bytes of tensors, as they were, that one output file holds; it is collected in memory."""


@dataclass(frozen=True)
class CodeScheme:
    """Symmetric codes of `num_bits` with a scale for each row, or for each `group_len` inputs of one."""

    num_bits: int
    group_len: int | None = None

    def fits(self, num_inputs: int) -> bool:
        """Whether a linear of so many inputs is a whole number of groups."""
        return self.group_len is None or num_inputs % self.group_len == 0

    def settings(self, ignored: Collection[str]) -> dict[str, Any]:
        """The `quantization_config`; `ignored` are the linears without codes."""
        weights = {
            "num_bits": self.num_bits,
            "type": "int",
            "symmetric": True,
            "strategy": "channel" if self.group_len is None else "group",
            "group_size": self.group_len,
            "dynamic": False,
        }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": METHOD,
            "format": PACKED,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group | {"format": PACKED}},
            "ignore": sorted(ignored),
            "kv_cache_scheme": None,
        }


def write_tensors(
    source: Path,
    target: Path,
    *,
    linears: Mapping[str, bool],
    scheme: CodeScheme,
    on_progress: Callable[[int], object],
) -> int:
    """Write the tensors of folder `source` into folder `target`; returns the bytes written.

    `linears` are those that become codes, by the name that their tensor has less `.weight` -> whether it is stored as [in,
    out]. `on_progress(bytes)` is called after each tensor with its bytes in `source`. Raises `CheckpointError`.
    """
    files, sizes = tensor_files(source), tensor_sizes(source)
    shards = _shards(sizes)
    homes: dict[str, str] = {}
    num_written = 0
    for index, names in enumerate(shards, start=1):
        file_name = SINGLE_FILE if len(shards) == 1 else f"model-{index:05}-of-{len(shards):05}.safetensors"
        tensors: dict[str, Tensor] = {}
        with ExitStack() as opened:  # anew for each output file: what was read of a file stays in memory while it is open
            handles = {path: opened.enter_context(open_tensors(path, "cpu")) for path in {files[name] for name in names}}
            for name in names:
                tensor, linear = handles[files[name]].get_tensor(name), name.removesuffix(".weight")
                if name.endswith(".weight") and linear in linears:
                    tensors |= _codes(linear, tensor.T if linears[linear] else tensor, scheme)
                else:
                    tensors[name] = tensor
                on_progress(sizes[name])
            save_file(tensors, target / file_name, metadata={"format": "pt"})
        (target / file_name).chmod(0o644)  # the library makes files for their owner alone
        homes |= dict.fromkeys(tensors, file_name)
        num_written += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index_text = json.dumps({"metadata": {"total_size": num_written}, "weight_map": homes}, indent=2)
        (target / INDEX_FILE).write_text(index_text + "\n")
    return num_written


def _codes(name: str, weight_OI: Tensor, scheme: CodeScheme) -> dict[str, Tensor]:
    """The stored tensors of a linear. Scales keep all their digits in bfloat16, whatever the model's precision."""
    try:
        codes = IntCodes.quantized(weight_OI, num_bits=scheme.num_bits, group_len=scheme.group_len)
    except ValueError as error:
        raise CheckpointError(f"{name}.weight cannot be quantized: {error}") from error
    return {
        f"{name}.weight_packed": pack(codes.codes_OI, scheme.num_bits),
        f"{name}.weight_scale": codes.scale_OG.to(torch.bfloat16),
        f"{name}.weight_shape": torch.tensor(weight_OI.shape),
    }


def _shards(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names in the order of their layers, cut where a file would become too large."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(sizes, key=_by_number):
        if shards[-1] and filled + sizes[name] > MAX_FILE_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += sizes[name]
    return shards


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
