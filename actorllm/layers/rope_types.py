"""The rope types of config.json: from a head's rotated size and base to inverse frequencies, one class a type.

default, linear (position interpolation, arXiv 2306.15595), dynamic (NTK-aware, after transformers), llama3 (Llama 3.1's
by-parts rule), yarn (arXiv 2309.00071) and longrope (arXiv 2402.13753). Knows neither heads nor batches.

Legend: T tokens, R rotated size of a head, F = R/2 frequencies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from actorllm.errors import UnsupportedConfig

YARN_BETA_FAST, YARN_BETA_SLOW = 32.0, 1.0


@dataclass(frozen=True)
class RopeType:
    """Type `default`: frequency f of F is `theta ** (-f / F)`; the base of the others.

    Every type reads its own keys out of `left`, where they are removed. `context_len` is `max_position_embeddings`.
    """

    name: ClassVar[str] = "default"

    @classmethod
    def read(cls, left: dict[str, Any], *, context_len: int, num_frequencies: int) -> Self:
        """From the rope parameters; raises `UnsupportedConfig`."""
        return cls()

    @property
    def attention_factor(self) -> float:
        """What rotated queries and keys are multiplied by."""
        return 1.0

    def context_len(self, max_positions: int) -> int:
        """The most tokens that the type was made for."""
        return max_positions

    def for_context(self, context: int) -> "RopeType":
        """The type where sequences have at most `context` tokens."""
        return self

    def frequencies(self, theta: float, num_frequencies: int) -> Tensor:
        """[F] float32, on the CPU."""
        return 1.0 / theta ** _exponents(num_frequencies)


@dataclass(frozen=True)
class Linear(RopeType):
    """All positions are divided by `factor`."""

    name: ClassVar[str] = "linear"
    factor: float

    @classmethod
    def read(cls, left: dict[str, Any], *, context_len: int, num_frequencies: int) -> Self:
        return cls(take_positive(left, "factor"))

    def context_len(self, max_positions: int) -> int:
        return int(max_positions * self.factor)

    def frequencies(self, theta: float, num_frequencies: int) -> Tensor:
        return super().frequencies(theta, num_frequencies) / self.factor


@dataclass(frozen=True)
class Dynamic(RopeType):
    """The base grows with the position: each token's is that of a sequence which ends with it.

    transformers takes the length of the whole sequence at the time a key is made, so keys depend on how the prompt was
    cut. This rule gives its values for tokens generated one by one, and does not depend on chunking.
    """

    name: ClassVar[str] = "dynamic"
    factor: float
    original_context: int

    @classmethod
    def read(cls, left: dict[str, Any], *, context_len: int, num_frequencies: int) -> Self:
        if num_frequencies < 2:
            raise UnsupportedConfig("config.json: rope type 'dynamic' needs at least 4 rotated values in a head")
        # As in transformers, scaling starts from max_position_embeddings, whatever else is written.
        return cls(take_positive(left, "factor"), context_len)

    def context_len(self, max_positions: int) -> int:
        return int(max_positions * self.factor)

    def frequencies_at(self, positions_T: Tensor, theta: float, num_frequencies: int) -> Tensor:
        """[T, F] on the positions' device."""
        seq_len_T = (positions_T + 1).clamp(min=self.original_context).to(torch.float32)
        growth_T = self.factor * seq_len_T / self.original_context - (self.factor - 1)
        theta_T = theta * growth_T ** (num_frequencies / (num_frequencies - 1))
        return 1.0 / theta_T.unsqueeze(1) ** _exponents(num_frequencies, positions_T.device)


@dataclass(frozen=True)
class Llama3(RopeType):
    """Long waves are slowed down by `factor`, short ones kept, those between blended."""

    name: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    @classmethod
    def read(cls, left: dict[str, Any], *, context_len: int, num_frequencies: int) -> Self:
        low, high = take_positive(left, "low_freq_factor"), take_positive(left, "high_freq_factor")
        if low >= high:
            raise UnsupportedConfig("config.json: rope's low_freq_factor must be smaller than its high_freq_factor")
        return cls(take_positive(left, "factor"), low, high, _take_original(left, context_len))

    def frequencies(self, theta: float, num_frequencies: int) -> Tensor:
        plain_F = super().frequencies(theta, num_frequencies)
        turns_F = self.original_context * plain_F / (2 * math.pi)
        kept_F = ((turns_F - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0.0, 1.0)
        return (1 - kept_F) * plain_F / self.factor + kept_F * plain_F


@dataclass(frozen=True)
class Yarn(RopeType):
    """Waves that turn more than `beta_fast` times in the original context are kept, those that turn less than `beta_slow`
    times are slowed down by `factor`, with a linear ramp over the frequencies between.

    `scale` is the attention factor. With `truncate`, the ramp begins and ends at whole frequencies.
    """

    name: ClassVar[str] = "yarn"
    factor: float
    original_context: int
    scale: float
    beta_fast: float = YARN_BETA_FAST
    beta_slow: float = YARN_BETA_SLOW
    truncate: bool = True

    @classmethod
    def read(cls, left: dict[str, Any], *, context_len: int, num_frequencies: int) -> Self:
        original = _take_original(left, context_len)
        factor = take_positive(left, "factor", default=context_len / original)
        truncate = left.pop("truncate", None)
        if truncate not in (None, True, False):
            raise UnsupportedConfig(f"config.json: truncate in the rope parameters is {truncate!r}, but must be true or false")
        fast, slow = (
            take_positive(left, "beta_fast", default=YARN_BETA_FAST, or_zero=True) or YARN_BETA_FAST,
            take_positive(left, "beta_slow", default=YARN_BETA_SLOW, or_zero=True) or YARN_BETA_SLOW,
        )
        if fast < slow:
            raise UnsupportedConfig("config.json: rope's beta_fast must not be smaller than its beta_slow")
        mscale = take_positive(left, "mscale", default=0.0, or_zero=True)
        mscale_all_dim = take_positive(left, "mscale_all_dim", default=0.0, or_zero=True)
        scale = yarn_mscale(factor)
        if mscale and mscale_all_dim:
            scale = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
        return cls(factor, original, take_positive(left, "attention_factor", default=scale), fast, slow, truncate is not False)

    @property
    def attention_factor(self) -> float:
        return self.scale

    def context_len(self, max_positions: int) -> int:
        """Some files write the stretched length as `max_position_embeddings`, some the original one."""
        return max(max_positions, int(self.original_context * self.factor))

    def frequencies(self, theta: float, num_frequencies: int) -> Tensor:
        plain_F = super().frequencies(theta, num_frequencies)
        first, last = (self._frequency_of(turns, theta, num_frequencies) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * num_frequencies - 1)
        width = last - first or 0.001  # a ramp of no width is a step
        slowed_F = ((torch.arange(num_frequencies, dtype=torch.float32) - first) / width).clamp(0.0, 1.0)
        return plain_F / self.factor * slowed_F + plain_F * (1 - slowed_F)

    def _frequency_of(self, turns: float, theta: float, num_frequencies: int) -> float:
        """The (fractional) index of the frequency that makes so many turns in the original context."""
        return num_frequencies * math.log(self.original_context / (turns * 2 * math.pi)) / math.log(theta)


@dataclass(frozen=True)
class LongRope(RopeType):
    """Each frequency is divided by its own factor, of the long list where the served context goes past the original one
    and of the short list where it does not.

    The choice is for a whole server: one by each sequence's length would have to change keys that are in the cache. `scale`
    is the attention factor.
    """

    name: ClassVar[str] = "longrope"
    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_context: int
    scale: float
    served_context: int

    @classmethod
    def read(cls, left: dict[str, Any], *, context_len: int, num_frequencies: int) -> Self:
        original = _take_original(left, context_len)
        factor = take_positive(left, "factor", default=context_len / original)
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return cls(
            short_factors=_take_factors(left, "short_factor", num_frequencies),
            long_factors=_take_factors(left, "long_factor", num_frequencies),
            original_context=original,
            scale=take_positive(left, "attention_factor", default=scale),
            served_context=context_len,
        )

    @property
    def is_long(self) -> bool:
        """Whether the long factors are used."""
        return self.served_context > self.original_context

    @property
    def attention_factor(self) -> float:
        return self.scale

    def for_context(self, context: int) -> "LongRope":
        return replace(self, served_context=context)

    def frequencies(self, theta: float, num_frequencies: int) -> Tensor:
        factors_F = torch.tensor(self.long_factors if self.is_long else self.short_factors, dtype=torch.float32)
        return 1.0 / (factors_F * theta ** _exponents(num_frequencies))


ROPE_TYPES: Mapping[str, type[RopeType]] = {kind.name: kind for kind in (RopeType, Linear, Dynamic, Llama3, Yarn, LongRope)}


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Yarn's correction of the attention's temperature for a context stretched by `factor` (arXiv 2309.00071, eq. 22)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def take_positive(left: dict[str, Any], key: str, *, default: float | None = None, or_zero: bool = False) -> float:
    """Take a number above zero; null counts as absent. Raises `UnsupportedConfig`."""
    value = left.pop(key, None)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf or (or_zero and value == 0)):
        raise UnsupportedConfig(f"config.json: {key} in the rope parameters is {value!r}, but must be a number above 0")
    return float(value)


def _take_original(left: dict[str, Any], context_len: int) -> int:
    """The length that scaling starts from."""
    original = int(take_positive(left, "original_max_position_embeddings", default=context_len))
    if original < 2:
        raise UnsupportedConfig("config.json: original_max_position_embeddings in the rope parameters must be at least 2")
    return original


def _take_factors(left: dict[str, Any], key: str, num_frequencies: int) -> tuple[float, ...]:
    values = left.pop(key, None)
    if not isinstance(values, list) or len(values) != num_frequencies:
        raise UnsupportedConfig(f"config.json: {key} in the rope parameters must be a list of {num_frequencies} numbers")
    return tuple(take_positive({key: value}, key) for value in values)


def _exponents(num_frequencies: int, device: torch.device | None = None) -> Tensor:
    size = 2 * num_frequencies
    return torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
