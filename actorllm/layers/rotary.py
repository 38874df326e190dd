"""Rotary position embeddings: angles for each token, made once a step and shared by all layers.

Knows pairs and positions; how fast each pair turns is its rope type's business (`rope_types`).
Legend: T tokens, D head_dim, R rotated size of a head, F = R/2 frequencies.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from actorllm.errors import UnsupportedConfig
from actorllm.layers.rope_types import ROPE_TYPES, Dynamic, LongRope, RopeType, take_positive
from actorllm_kernels.rotary_store import Angles, angles_at, angles_of, rotate

logger = logging.getLogger(__name__)


class RotaryTables(Angles):
    """The angles of a batch's tokens; `Attention` takes them, or `apply` rotates by them alone."""

    def apply(self, x_THD: Tensor) -> Tensor:
        """Queries or keys, their first R values rotated."""
        return rotate(x_THD, self)


@dataclass(frozen=True)
class Rotary:
    """How positions become angles for the first `rotary_dim` values of a head.

    With `sections` positions have several rows, and row i turns the next `sections[i]` frequencies (M-RoPE of Qwen2-VL, arXiv
    2409.12191: time, height and width).
    """

    rotary_dim: int
    theta: float = 10000.0
    type: RopeType = field(default_factory=RopeType)
    is_interleaved: bool = False
    sections: tuple[int, ...] = ()
    _by_device: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        is_covered = sum(self.sections) == self.rotary_dim // 2 and not isinstance(self.type, Dynamic)
        assert not self.sections or is_covered, "sections share out all frequencies, of a type that has the same at all positions"

    @classmethod
    def from_hf(
        cls,
        head_dim: int,
        parameters: Mapping[str, Any],
        *,
        context_len: int,
        partial: float | None = None,
        is_interleaved: bool = False,
    ) -> "Rotary":
        """From a flat mapping with `rope_type`, `rope_theta` and the type's own keys. Raises `UnsupportedConfig`.

        `context_len` is `max_position_embeddings`. `partial` is the rotated share of a head if `partial_rotary_factor` does
        not say; None is for architectures that rotate whole heads and refuse a share.
        """
        left = dict(parameters)
        old_name = left.pop("type", None)
        name = left.pop("rope_type", None) or old_name or RopeType.name
        if not isinstance(name, str) or name not in ROPE_TYPES:
            raise UnsupportedConfig(f"config.json: rope type {name!r} is not implemented; known are {', '.join(ROPE_TYPES)}")
        share = take_positive(left, "partial_rotary_factor", default=partial or 1.0)
        if share > 1 or (partial is None and share != 1):
            raise UnsupportedConfig(f"config.json: partial_rotary_factor {share} is not implemented for this architecture")
        rotary_dim = int(head_dim * share)
        if rotary_dim % 2 or rotary_dim == 0:
            raise UnsupportedConfig(f"config.json: {rotary_dim} values of a head (head_dim {head_dim}) cannot turn in pairs")
        theta = take_positive(left, "rope_theta", default=cls.theta)
        if theta <= 1:
            raise UnsupportedConfig(f"config.json: rope_theta is {theta}, but must be above 1")
        rope_type = ROPE_TYPES[name].read(left, context_len=context_len, num_frequencies=rotary_dim // 2)
        take_positive(left, "original_max_position_embeddings", default=1.0)  # a type that did not take it does not start from it
        if left:
            raise UnsupportedConfig(
                f"config.json: {', '.join(sorted(left))} in the rope parameters is not implemented for type {name!r}"
            )
        return cls(rotary_dim, theta, rope_type, is_interleaved)

    def context_len(self, max_positions: int) -> int:
        """The most tokens that the model was made for: some types stretch `max_position_embeddings`."""
        return self.type.context_len(max_positions)

    def for_context(self, context: int) -> "Rotary":
        """The rotary of a server whose sequences have at most `context` tokens; what depends on that is logged."""
        rope_type = self.type.for_context(context)
        if isinstance(rope_type, LongRope):
            chosen, side = ("long", "past") if rope_type.is_long else ("short", "within")
            logger.info(
                "longrope: the %s factors are used, because the served context of %d tokens goes %s the original %d",
                chosen, context, side, rope_type.original_context,
            )  # fmt: skip
        return replace(self, type=rope_type)

    def tables(self, positions_T: Tensor, dtype: torch.dtype) -> RotaryTables:
        """The angles of a batch's tokens ([T], or with sections [their number, T]); computed in float32, given in `dtype`."""
        frequencies, form = self._frequencies(positions_T), {"factor": self.type.attention_factor, "is_interleaved": self.is_interleaved}
        if self.sections:
            rows = zip(positions_T.to(torch.float32).unsqueeze(-1), self.sections, strict=True)
            angles = angles_at(torch.cat([row_T1.expand(-1, size) for row_T1, size in rows], dim=-1) * frequencies, **form)
        else:
            angles = angles_of(positions_T, frequencies, **form)
        return RotaryTables(angles.cos_T1R.to(dtype), angles.sin_T1R.to(dtype), self.is_interleaved)

    def _frequencies(self, positions_T: Tensor) -> Tensor:
        """Inverse frequencies [F], or [T, F] where they depend on the position."""
        if isinstance(self.type, Dynamic):
            return self.type.frequencies_at(positions_T, self.theta, self.rotary_dim // 2)
        if positions_T.device not in self._by_device:  # once: a copy to the device in every step would wait for the host
            frequencies_F = self.type.frequencies(self.theta, self.rotary_dim // 2)
            self._by_device[positions_T.device] = frequencies_F.to(positions_T.device)
        return self._by_device[positions_T.device]
