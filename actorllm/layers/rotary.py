"""Rotary position embeddings: angles for each token, made once a step and shared by all layers.

Types: default, linear (position interpolation, arXiv 2306.15595), dynamic (NTK-aware, after transformers) and llama3
(Llama 3.1's by-parts rule). Legend: T tokens, D rotated size of a head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from actorllm.errors import UnsupportedConfig
from actorllm_kernels.rotary import rotate

KINDS = ("default", "linear", "dynamic", "llama3")


class RotaryTables(NamedTuple):
    """Cosines and sines [T, 1, D] of a batch's positions."""

    cos_T1D: Tensor
    sin_T1D: Tensor

    def apply(self, x_THD: Tensor) -> Tensor:
        """Queries or keys, rotated."""
        return rotate(x_THD, self.cos_T1D, self.sin_T1D)


@dataclass(frozen=True)
class Rotary:
    """How positions become angles for heads of size `head_dim`.

    `original_context` is the length that scaling starts from (dynamic, llama3).
    """

    head_dim: int
    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    @classmethod
    def from_hf(cls, head_dim: int, parameters: Mapping[str, Any], *, context_len: int) -> "Rotary":
        """From a flat mapping with `rope_type`, `rope_theta` and the type's own keys; `context_len` is
        `max_position_embeddings`. Raises `UnsupportedConfig`."""
        left = dict(parameters)
        old_kind = left.pop("type", None)
        kind = left.pop("rope_type", None) or old_kind or "default"
        if kind not in KINDS:
            raise UnsupportedConfig(f"config.json: rope type {kind!r} is not implemented; known are {', '.join(KINDS)}")
        if head_dim % 2 or head_dim < 4:
            raise UnsupportedConfig(f"config.json: a head of {head_dim} values cannot be rotated in pairs")
        values = {"theta": _positive(left, "rope_theta", 10000.0)}
        original = _positive(left, "original_max_position_embeddings", context_len)
        if kind != "default":
            values["factor"] = _positive(left, "factor")
        if kind == "llama3":
            values["low_freq_factor"] = _positive(left, "low_freq_factor")
            values["high_freq_factor"] = _positive(left, "high_freq_factor")
            if values["low_freq_factor"] >= values["high_freq_factor"]:
                raise UnsupportedConfig("config.json: rope's low_freq_factor must be smaller than its high_freq_factor")
        if left.get("partial_rotary_factor") in (None, 1.0):
            left.pop("partial_rotary_factor", None)
        if left:
            raise UnsupportedConfig(
                f"config.json: {', '.join(sorted(left))} in the rope parameters is not implemented for type {kind!r}"
            )
        # As in transformers, dynamic scaling starts from max_position_embeddings, whatever else is written.
        original_context = int(original) if kind == "llama3" else context_len
        return cls(head_dim, kind=kind, original_context=original_context, **values)

    def context_len(self, max_positions: int) -> int:
        """The most tokens that the scaling was made for: linear and dynamic stretch `max_position_embeddings`."""
        return int(max_positions * self.factor) if self.kind in ("linear", "dynamic") else max_positions

    def tables(self, positions_T: Tensor, dtype: torch.dtype) -> RotaryTables:
        """The angles of a batch's tokens; computed in float32, given in `dtype`."""
        angles_TF = positions_T.to(torch.float32).unsqueeze(1) * self._frequencies(positions_T)
        angles_T1D = torch.cat((angles_TF, angles_TF), dim=-1).unsqueeze(1)
        return RotaryTables(angles_T1D.cos().to(dtype), angles_T1D.sin().to(dtype))

    def _frequencies(self, positions_T: Tensor) -> Tensor:
        """Inverse frequencies [D/2], or [T, D/2] where they depend on the position."""
        exponents_F = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions_T.device) / self.head_dim
        if self.kind == "dynamic":
            return 1.0 / self._dynamic_theta(positions_T).unsqueeze(1) ** exponents_F
        frequencies_F = 1.0 / self.theta**exponents_F
        if self.kind == "linear":
            return frequencies_F / self.factor
        return self._llama3(frequencies_F) if self.kind == "llama3" else frequencies_F

    def _dynamic_theta(self, positions_T: Tensor) -> Tensor:
        """Each token's base is that of a sequence which ends with it.

        transformers takes the length of the whole sequence at the time a key is made, so keys depend on how the prompt was
        cut. This rule gives its values for tokens generated one by one, and does not depend on chunking.
        """
        seq_len_T = (positions_T + 1).clamp(min=self.original_context).to(torch.float32)
        growth_T = self.factor * seq_len_T / self.original_context - (self.factor - 1)
        return self.theta * growth_T ** (self.head_dim / (self.head_dim - 2))

    def _llama3(self, frequencies_F: Tensor) -> Tensor:
        """Long wavelengths are slowed down by `factor`, short ones kept, those between blended."""
        wavelengths_F = 2 * math.pi / frequencies_F
        turns_F = self.original_context / wavelengths_F
        blend_F = ((turns_F - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0.0, 1.0)
        return (1 - blend_F) * frequencies_F / self.factor + blend_F * frequencies_F


def _positive(left: dict[str, Any], key: str, default: float | None = None) -> float:
    """Take a number above zero."""
    value = left.pop(key, None)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UnsupportedConfig(f"config.json: {key} in the rope parameters is {value!r}, but must be a number above 0")
    return float(value)
