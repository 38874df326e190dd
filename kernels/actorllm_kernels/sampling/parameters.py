"""What sampling knows of every device row. Knows no request and no kernel.

Legend: R device rows, P parameters, B adjusted tokens of a row (the most there are), V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM: the division would leave nothing but the best token anyhow."""

TEMPERATURE, TOP_K, TOP_P, MIN_P, REPETITION, PRESENCE, FREQUENCY = range(7)
"""The columns of `Rows.parameters_RP`. top_k is in 1 .. V (V is off), top_p in (0, 1] (1 is off), min_p in [0, 1] (0 is off);
repetition is off at 1, presence and frequency at 0. Of a top_p of 0 the best token is left."""
NUM_PARAMETERS = 7


@dataclass(frozen=True, slots=True)
class Rows:
    """Seeds int64, and parameters float64."""

    seeds_R: Tensor
    parameters_RP: Tensor


@dataclass(frozen=True, slots=True)
class Seen:
    """How often each row's output has each token (int32), and whether its prompt has it (bool)."""

    output_RV: Tensor
    prompt_RV: Tensor


@dataclass(frozen=True, slots=True)
class Adjustments:
    """Tokens of each row whose logits are changed: the first `lens_R` of a row's places count, no token twice.

    `values_RB` float32 are added; while fewer than `until_RB` outputs exist the token is banned instead. The others are int64.
    """

    lens_R: Tensor
    ids_RB: Tensor
    values_RB: Tensor
    until_RB: Tensor


@dataclass(frozen=True, slots=True)
class Needs:
    """What at least one row of a batch asks for, as the host knows it. More than is asked for costs time and changes nothing."""

    is_random: bool = True
    has_top_k: bool = True
    has_top_p: bool = True
    has_min_p: bool = True
