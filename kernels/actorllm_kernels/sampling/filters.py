"""Which tokens may be sampled: top-k, top-p and min-p over rows with their own settings.

The order is the one of vLLM and Hugging Face's generate: top-k first, top-p over what top-k left (renormalised), min-p
relative to the best token's probability. Exactly k tokens stay; among equal scores the lower ids do. Knows no request.

Legend: S rows, V vocabulary, W sorted candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NARROW = 1024
"""Candidates that top-p looks at before it sorts a whole row: enough for all but flat distributions."""


@dataclass(frozen=True, slots=True)
class FilterParameters:
    """Per row: `top_k` in 1 .. V (V is off), `top_p` in (0, 1] (1 is off), `min_p` in [0, 1] (0 is off).

    `max_k` is the largest top_k below V (0: none is), `has_nucleus` whether a row has top_p without top_k: both
    are known on the host, so that nothing has to be read back from the device to choose the way.
    """

    top_k_S: Tensor
    top_p_S: Tensor
    min_p_S: Tensor
    max_k: int
    has_nucleus: bool


def allowed(scores_SV: Tensor, parameters: FilterParameters) -> Tensor:
    """[S, V] bool: the tokens that each row may sample. `scores` are log weights with each row's best at 0.

    top-p keeps the smallest set whose probability is >= p (Holtzman et al., arXiv 1904.09751); min-p keeps
    probabilities >= min_p * the largest one (arXiv 2407.01082).
    """
    mask_SV = scores_SV >= parameters.min_p_S.log().unsqueeze(1)
    if parameters.max_k == 0 and not parameters.has_nucleus:
        return mask_SV
    vocab_size = scores_SV.shape[1]
    width = parameters.max_k
    if parameters.has_nucleus:
        # reading `is_enough` back would stall a GPU, which sorts fast anyhow
        width = vocab_size if not scores_SV.is_cpu else max(width, min(NARROW, vocab_size))
    sorted_SW, num_kept_S, is_enough_S = _num_kept(scores_SV, parameters, width)
    if parameters.has_nucleus and width < vocab_size and not bool(is_enough_S.all()):
        sorted_SW, num_kept_S, _ = _num_kept(scores_SV, parameters, vocab_size)
    return mask_SV & _best(scores_SV, sorted_SW, num_kept_S)


def _num_kept(scores_SV: Tensor, parameters: FilterParameters, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `width` best scores in order, how many tokens top-k and top-p keep (V: all), and whether `width` sufficed."""
    vocab_size = scores_SV.shape[1]
    top_k_S, top_p_S = parameters.top_k_S, parameters.top_p_S
    sorted_SW = scores_SV.topk(width).values
    cumulative_SW = sorted_SW.exp().cumsum(1, dtype=torch.float64)
    has_k_S = top_k_S < vocab_size
    last_S1 = (top_k_S.clamp(max=width) - 1).unsqueeze(1)
    all_S = scores_SV.exp().sum(1, dtype=torch.float64)
    total_S = torch.where(has_k_S, cumulative_SW.gather(1, last_S1).squeeze(1), all_S)
    goal_S = top_p_S * total_S
    num_nucleus_S = (cumulative_SW < goal_S.unsqueeze(1)).sum(1) + 1
    has_p_S = top_p_S < 1
    num_kept_S = torch.where(has_p_S, torch.minimum(num_nucleus_S, top_k_S), top_k_S)
    is_enough_S = ~has_p_S | (num_kept_S <= width)
    return sorted_SW, num_kept_S, is_enough_S


def _best(scores_SV: Tensor, sorted_SW: Tensor, num_kept_S: Tensor) -> Tensor:
    """[S, V] bool: each row's `num_kept` best tokens; of equal scores at the edge the lower ids."""
    is_all_S1 = (num_kept_S >= scores_SV.shape[1]).unsqueeze(1)
    last_S1 = (num_kept_S.clamp(max=sorted_SW.shape[1]) - 1).unsqueeze(1)
    edge_S1 = sorted_SW.gather(1, last_S1)
    num_above_S1 = (sorted_SW > edge_S1).sum(1, keepdim=True)
    is_edge_SV = scores_SV == edge_S1
    is_early_SV = is_edge_SV.cumsum(1) <= num_kept_S.unsqueeze(1) - num_above_S1
    return is_all_S1 | (scores_SV > edge_S1) | (is_edge_SV & is_early_SV)
