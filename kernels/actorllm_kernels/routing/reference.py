"""What choosing experts means, in torch operators: the specification.

The best of all experts after "Mixtral of Experts" (arXiv 2401.04088); of groups of experts after DeepSeek-V2 (arXiv 2405.04434)
and V3 (arXiv 2412.19437). Legend: T tokens, E experts, K experts of one token.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """How logits become a choice of `top_k` out of `num_experts`, and its weights.

    Weights are the chosen scores, divided by their sum with `is_normalised`, times `scale`. With `num_groups`, the
    experts are that many groups of neighbours, and only the `top_groups` best of them are chosen from; a group is as good as
    its `group_best` best experts together.
    """

    num_experts: int
    top_k: int
    scores: Literal["softmax", "sigmoid"] = "softmax"
    is_normalised: bool = False
    scale: float = 1.0
    num_groups: int = 1
    top_groups: int = 1
    group_best: int = 1

    @property
    def form(self) -> str:
        """How scores are made, and whether groups are chosen first: what kernels are checked for."""
        return self.scores + (" in groups" if self.num_groups > 1 else "")


def choose(logits_TE: Tensor, correction_E: Tensor | None, *, rule: Rule) -> tuple[Tensor, Tensor]:
    """(weights [T, K], experts [T, K], the best first) from float32 logits; `correction_E` is added to scores for choosing alone.

    Of a token with logits that are not numbers any experts are chosen, maybe one of them several times.
    """
    scores_TE = logits_TE.sigmoid() if rule.scores == "sigmoid" else logits_TE.softmax(dim=-1)
    merits_TE = scores_TE if correction_E is None else scores_TE + correction_E
    if rule.num_groups > 1:
        merits_TE = _within_best_groups(merits_TE, rule)
    experts_TK = merits_TE.topk(rule.top_k, dim=-1).indices
    weights_TK = scores_TE.gather(1, experts_TK)
    if rule.is_normalised:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return weights_TK * rule.scale, experts_TK


def _within_best_groups(merits_TE: Tensor, rule: Rule) -> Tensor:
    """Experts outside of the best groups get the merit -inf."""
    grouped = merits_TE.unflatten(1, (rule.num_groups, -1))
    best = grouped.topk(rule.group_best, dim=-1).values.sum(dim=-1).topk(rule.top_groups, dim=-1).indices
    is_out = torch.ones(grouped.shape[:2], dtype=torch.bool, device=best.device).scatter_(1, best, False)
    return grouped.masked_fill(is_out.unsqueeze(-1), -torch.inf).flatten(1)
