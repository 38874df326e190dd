"""Integer checkpoints of the compressed-tensors library: what config.json says of them, and how a linear is read.

Formats `pack-quantized` (codes of 4 or 8 bits in words of 32) and `int-quantized` (one code a byte), symmetric or with zero
points, with scales for the whole tensor, each row, or groups of inputs. Linears become plain as they are read,
or stay codes (compact.py). Which ones
are quantized is told by the tensors' names, so `targets` and `ignore` need not be understood.

Legend: O outputs, I inputs, G groups of a row's inputs, W words of 32 bits.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from actorllm.errors import CheckpointError, UnsupportedConfig
from actorllm.weights.formats import PlainFormat, TensorReader
from actorllm.weights.int_codes import IntCodes, unpack
from actorllm.weights.linear_weight import DenseWeight, LinearWeight
from actorllm.weights.source import Part

logger = logging.getLogger(__name__)

METHOD = "compressed-tensors"
PACKED, UNPACKED = "pack-quantized", "int-quantized"
NOTES = frozenset(("quant_method", "global_compression_ratio", "version", "ignore"))
"""Keys that say nothing of how values are stored; what is ignored has no codes."""
UNUSED = ("kv_cache_scheme", "sparsity_config", "transform_config", "moe_sparsity_config")
"""Keys that must be empty: they change the computation."""
CALIBRATION = frozenset(("observer", "observer_kwargs", "scale_dtype", "zp_dtype"))
"""Keys of a scheme that say how its values were found; types are in the tensors' headers."""


@dataclass(frozen=True)
class CompressedFormat(PlainFormat):
    """One scheme for all quantized linears. `group_len` is the inputs that share a scale (None: `strategy` says which do);
    with `is_ordered`, `weight_g_idx` says which group each input belongs to."""

    num_bits: int
    is_packed: bool
    strategy: str
    group_len: int | None = None
    is_symmetric: bool = True
    is_ordered: bool = False

    @property
    def can_be_kept(self) -> bool:
        """Whether forms in memory can have the codes as they are: these know neither zero points nor an order of inputs."""
        return self.is_symmetric and not self.is_ordered

    def linear(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> LinearWeight:
        codes = self.codes(reader, name, shape=shape, rows=rows, cols=cols)
        if codes is None:
            return super().linear(reader, name, shape=shape, rows=rows, cols=cols)
        return DenseWeight(codes.dense(reader.dtype))

    def num_values(self, name: str, shape: tuple[int, ...], *, is_scaled: bool = False) -> int:
        if name.endswith((".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx")):
            return 0
        return prod(shape) * (32 // self.num_bits if name.endswith(".weight_packed") else 1)

    def codes(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part, cols: Part) -> IntCodes | None:
        """The part `rows` x `cols` of a linear; None if it is not quantized. Raises `TensorMissing` or `CheckpointError`."""
        if not reader.has(f"{name}.weight_scale"):
            return None
        begin, end = cols or (0, shape[1])
        if self.is_packed:
            self._check_shape(reader, name, shape)
            per_word = 32 // self.num_bits
            words = (shape[0], -(-shape[1] // per_word))
            part = (begin // per_word, -(-end // per_word))
            words_OW = reader.read(f"{name}.weight_packed", words, rows=rows, cols=part, dtype=torch.int32)
            offset = part[0] * per_word
            codes_OI = unpack(words_OW, self.num_bits)[:, begin - offset : end - offset]
        else:
            codes_OI = reader.read(f"{name}.weight", shape, rows=rows, cols=cols, dtype=torch.int8)
        if self.strategy == "tensor":
            scale_1 = reader.read(f"{name}.weight_scale", (1,), dtype=torch.float32)
            return IntCodes(codes_OI, scale_1.expand(len(codes_OI), 1), num_bits=self.num_bits)
        num_groups = -(-shape[1] // self.group_len) if self.group_len else 1
        scales = (shape[0], num_groups)
        scale_OG = reader.read(f"{name}.weight_scale", scales, rows=rows, dtype=torch.float32)
        zero_OG = None if self.is_symmetric else self._zeros(reader, f"{name}.weight_zero_point", shape=scales, rows=rows)
        group_I = None
        if self.is_ordered:
            group_I = reader.read(f"{name}.weight_g_idx", shape[1:], rows=(begin, end), dtype=torch.int32).long()
            if group_I.device.type != "meta" and not ((group_I >= 0) & (group_I < num_groups)).all():
                raise CheckpointError(f"tensor {name}.weight_g_idx names groups beyond the {num_groups} that there are")
        elif self.group_len:
            group_I = self._groups(begin, end).to(codes_OI.device)
        is_even = not self.group_len
        if self.group_len and not self.is_ordered and begin % self.group_len == end % self.group_len == 0:
            groups = slice(begin // self.group_len, end // self.group_len)
            scale_OG, zero_OG = scale_OG[:, groups], None if zero_OG is None else zero_OG[:, groups]
            group_I, is_even = self._groups(0, end - begin).to(codes_OI.device), True
        return IntCodes(codes_OI, scale_OG, zero_OG, group_I, num_bits=self.num_bits, is_even=is_even)

    def _groups(self, begin: int, end: int) -> Tensor:
        """The group of each of some inputs."""
        assert self.group_len is not None
        return torch.arange(begin, end) // self.group_len

    def _zeros(self, reader: TensorReader, name: str, *, shape: tuple[int, int], rows: Part) -> Tensor:
        if not self.is_packed:
            return reader.read(name, shape, rows=rows, dtype=torch.int8)
        per_word = 32 // self.num_bits  # along the outputs, which a part need not cut at words
        begin, end = rows or (0, shape[0])
        part = (begin // per_word, -(-end // per_word))
        words_WG = reader.read(name, (-(-shape[0] // per_word), shape[1]), rows=part, dtype=torch.int32)
        return unpack(words_WG.T, self.num_bits).T[begin - part[0] * per_word : end - part[0] * per_word]

    @staticmethod
    def _check_shape(reader: TensorReader, name: str, shape: tuple[int, int]) -> None:
        stored = reader.read(f"{name}.weight_shape", (2,), dtype=torch.int64)
        if stored.device.type != "meta" and tuple(stored.tolist()) != shape:
            raise CheckpointError(f"linear {name} has shape {tuple(stored.tolist())}, but config.json makes it {shape}")


def read_compressed(settings: Mapping[str, Any]) -> CompressedFormat:
    """The format that a `quantization_config` describes. Raises `UnsupportedConfig` for what is not served."""
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups or not all(isinstance(group, Mapping) for group in groups.values()):
        raise _refusal(f"config_groups is {groups!r}, but must be an object of schemes")
    for key in UNUSED:
        if settings.get(key) not in (None, {}, {"format": "dense"}, {"config_groups": {}}):
            raise _refusal(f"{key} = {settings[key]!r} is not implemented")
    if settings.get("quantization_status") not in (None, "compressed"):
        raise _refusal(f"quantization_status = {settings['quantization_status']!r}: only compressed weights are read")
    unknown = settings.keys() - NOTES - {*UNUSED, "config_groups", "quantization_status", "format"}
    if unknown:
        raise _refusal(f"{', '.join(sorted(unknown))} is not implemented")
    formats = {_read_scheme(group, group.get("format") or settings.get("format")) for group in groups.values()}
    if len(formats) > 1:
        raise _refusal("different schemes for different linears are not implemented")
    return formats.pop()


def _read_scheme(group: Mapping[str, Any], storage: Any) -> CompressedFormat:
    """One of the `config_groups`."""
    if storage not in (PACKED, UNPACKED):
        raise _refusal(f"format {storage!r} is not implemented; known are {PACKED} and {UNPACKED}")
    weights, inputs = group.get("weights"), group.get("input_activations")
    if unknown := sorted(group.keys() - {"targets", "weights", "input_activations", "output_activations", "format"}):
        raise _refusal(f"{', '.join(unknown)} in a scheme is not implemented")
    if group.get("output_activations") is not None or (
        inputs is not None and not (isinstance(inputs, Mapping) and inputs.get("dynamic"))
    ):
        raise _refusal("activations with fixed scales are not implemented")
    if inputs is not None:
        logger.info("weights are quantized, but activations are not, though the checkpoint would allow it: that is more exact")
    if not isinstance(weights, Mapping):
        raise _refusal(f"weights of a scheme are {weights!r}, but must be an object")
    left = {key: value for key, value in weights.items() if value is not None and key not in CALIBRATION}
    num_bits, strategy, group_len = left.pop("num_bits", 8), left.pop("strategy", None), left.pop("group_size", -1)
    order = left.pop("actorder", False)
    is_symmetric = left.pop("symmetric", True)
    strategy = strategy or ("group" if group_len != -1 else "tensor" if weights.get("group_size") is None else "channel")
    is_grouped = strategy == "group" and type(group_len) is int and group_len > 0
    if left.pop("type", "int") != "int" or type(num_bits) is not int or num_bits not in (4, 8):
        raise _refusal(
            f"weights of type {weights.get('type', 'int')} with {num_bits} bits are not implemented, only int of 4 or 8"
        )
    if strategy not in ("tensor", "channel") and not is_grouped:
        raise _refusal(f"strategy {strategy!r} with group_size {group_len} is not implemented")
    if type(is_symmetric) is not bool or (strategy == "tensor" and not is_symmetric):
        raise _refusal(f"symmetric = {is_symmetric!r} with strategy {strategy!r} is not implemented")
    if order not in (False, "weight", "static", "group", "dynamic", True):
        raise _refusal(f"actorder = {order!r} is not implemented")
    if unknown := sorted(key for key, value in left.items() if value not in (False, [], {})):
        raise _refusal(f"{', '.join(unknown)} in a scheme's weights is not implemented")
    return CompressedFormat(
        num_bits=num_bits,
        is_packed=storage == PACKED,
        strategy=strategy,
        group_len=group_len if is_grouped else None,
        is_symmetric=is_symmetric,
        is_ordered=order in ("group", "dynamic", True) and is_grouped,
    )


def _refusal(what: str) -> UnsupportedConfig:
    return UnsupportedConfig(f"config.json, quantization_config: {what}; take the unquantized model")
