"""What sampling means, in torch operators: the specification.

The order is the one of vLLM and Hugging Face's generate: penalties, adjustments (bias, bans), temperature, top-k, top-p, min-p.
Then one uniform number picks a token by the inverse of the cumulative distribution in the order of ids: an order that rounding
cannot change, so every rank and device picks the same token up to rounding of the probabilities themselves.

Legend: R device rows, S samples, A some of the samples, B adjusted tokens of a row, V vocabulary, P parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from actorllm_kernels.sampling.filters import FilterParameters, allowed
from actorllm_kernels.sampling.parameters import (
    FREQUENCY,
    GREEDY_BELOW,
    MIN_P,
    REPETITION,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    Adjustments,
    Needs,
    Rows,
    Seen,
)
from actorllm_kernels.sampling.randomness import uniform


def penalize(logits_SV: Tensor, rows_S: Tensor, seen: Seen, *, rows: Rows) -> None:
    """In place.

    Repetition follows CTRL (arXiv 1909.05858) over prompt and output: a seen token's logit is divided by the penalty if positive,
    multiplied if not. Frequency and presence follow OpenAI, over the output alone: logit - count * frequency - (count > 0) *
    presence. The order is repetition, frequency, presence, as in vLLM. Rows whose parameters ask for nothing stay as they are.
    """
    penalties_3S = rows.parameters_RP[rows_S, REPETITION : FREQUENCY + 1].float().unbind(1)
    is_asked_S = (penalties_3S[0] != 1) | (penalties_3S[1] != 0) | (penalties_3S[2] != 0)
    if logits_SV.device.type != "cpu":
        logits_SV.copy_(torch.where(is_asked_S.unsqueeze(1), _penalized(logits_SV, rows_S, seen, penalties_3S), logits_SV))
        return
    index_A = is_asked_S.nonzero().squeeze(1)  # to look is free on a CPU
    logits_SV[index_A] = _penalized(logits_SV[index_A], rows_S[index_A], seen, [each[index_A] for each in penalties_3S])


def adjust(logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor, *, adjustments: Adjustments) -> None:
    """In place: each row's bias, and its bans while they last."""
    places_B = torch.arange(adjustments.ids_RB.shape[1], device=logits_SV.device)
    is_used_SB = places_B < adjustments.lens_R[rows_S].unsqueeze(1)
    is_banned_SB = positions_S.unsqueeze(1) < adjustments.until_RB[rows_S]
    added_SB = torch.where(is_banned_SB, -torch.inf, adjustments.values_RB[rows_S])
    ids_SB = torch.where(is_used_SB, adjustments.ids_RB[rows_S], 0)
    logits_SV.scatter_add_(1, ids_SB, torch.where(is_used_SB, added_SB, 0.0))


def draw(logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor, *, rows: Rows, needs: Needs) -> Tensor:
    """[S] int64: the best token (of equal ones the first) where the row is greedy, else one by the row's seed and the position.

    -1 where the best logit is not finite: there is a NaN or infinity, or nothing may be sampled.
    """
    best_S = logits_SV.max(-1)
    ids_S = best_S.indices
    if needs.is_random and len(rows_S):
        is_random_S = rows.parameters_RP[rows_S, TEMPERATURE] >= GREEDY_BELOW
        if logits_SV.device.type != "cpu" or bool(is_random_S.all()):
            drawn_S = _drawn(logits_SV, best_S.values, rows_S, positions_S, rows=rows, needs=needs)
            ids_S = torch.where(is_random_S, drawn_S, ids_S)
        else:  # to look is free on a CPU, and greedy rows need no exponentials
            index_A = is_random_S.nonzero().squeeze(1)
            samples = logits_SV[index_A], best_S.values[index_A], rows_S[index_A], positions_S[index_A]
            ids_S[index_A] = _drawn(*samples, rows=rows, needs=needs)
    return torch.where(best_S.values.isfinite(), ids_S, -1)


def count(ids_S: Tensor, rows_S: Tensor, seen: Seen) -> None:
    """One more of each sampled token (none where it is -1) in its row's output; rows may have several samples."""
    seen.output_RV.index_put_((rows_S, ids_S.clamp(min=0)), (ids_S >= 0).to(torch.int32), accumulate=True)


def _penalized(logits_AV: Tensor, rows_A: Tensor, seen: Seen, penalties_3A: Sequence[Tensor]) -> Tensor:
    repetition_A1, presence_A1, frequency_A1 = (each.unsqueeze(1) for each in penalties_3A)
    counts_AV = seen.output_RV[rows_A]
    is_output_AV = counts_AV > 0
    factor_AV = torch.where(logits_AV > 0, 1 / repetition_A1, repetition_A1)
    logits_AV = torch.where(is_output_AV | seen.prompt_RV[rows_A], logits_AV * factor_AV, logits_AV)
    return logits_AV - counts_AV * frequency_A1 - is_output_AV * presence_A1


def _drawn(logits_AV: Tensor, best_A: Tensor, rows_A: Tensor, positions_A: Tensor, *, rows: Rows, needs: Needs) -> Tensor:
    parameters_AP = rows.parameters_RP[rows_A]
    temperature_A = parameters_AP[:, TEMPERATURE]
    # with the best at 0 no temperature can overflow
    scores_AV = logits_AV - best_A.unsqueeze(1)
    scores_AV /= torch.where(temperature_A < GREEDY_BELOW, 1.0, temperature_A).float().unsqueeze(1)
    weights_AV = scores_AV.exp()
    if needs.has_top_k or needs.has_top_p or needs.has_min_p:
        weights_AV *= allowed(scores_AV, _filters(parameters_AP, needs, vocab_size=logits_AV.shape[1]))
    cumulative_AV = weights_AV.cumsum(1, dtype=torch.float64)
    goal_A = uniform(rows.seeds_R[rows_A], positions_A) * cumulative_AV[:, -1]
    drawn_A = torch.searchsorted(cumulative_AV, goal_A.unsqueeze(1), right=True).squeeze(1)
    return drawn_A.clamp(max=logits_AV.shape[1] - 1)  # past the end only where logits are not finite


def _filters(parameters_AP: Tensor, needs: Needs, *, vocab_size: int) -> FilterParameters:
    top_k_A, top_p_A = parameters_AP[:, TOP_K].long(), parameters_AP[:, TOP_P]
    max_k, has_nucleus = (vocab_size if needs.has_top_k else 0), needs.has_top_p
    if parameters_AP.device.type == "cpu":  # to look is free on a CPU, and saves sorting
        has_k_A = top_k_A < vocab_size
        max_k, has_nucleus = int((top_k_A * has_k_A).max()), bool(((top_p_A < 1) & ~has_k_A).any())
    return FilterParameters(top_k_A, top_p_A, parameters_AP[:, MIN_P].float(), max_k, has_nucleus)
