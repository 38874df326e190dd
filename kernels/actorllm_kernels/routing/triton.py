"""Choosing experts by the Triton kernel: one launch, a program for each token.

Of experts that are equally good the first is chosen. Legend: T tokens, E experts, K experts of one token.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.launch import INTERPRETED, Launch, require_dense
from actorllm_kernels.routing.reference import Rule

MOST_EXPERTS = 4096
"""Of one program's registers. Warps are no configuration: one holds 256 experts in 8 registers of a thread, more take four."""


@triton.jit
def best_of(merit_E, e_E, E: tl.constexpr):
    """The largest merit and the first expert that has it; the last expert where merits are not numbers."""
    best = tl.max(merit_E, axis=0)
    return best, tl.min(tl.where(merit_E == best, e_E, E - 1), axis=0)


@triton.jit
def within_best_groups(
    merit_E, e_E, E: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_BEST: tl.constexpr
):
    """Merits of the best groups' experts; of others -inf."""
    group_E = e_E // (E // GROUPS)
    worth_E = tl.full(merit_E.shape, float("-inf"), tl.float32)
    for group in tl.static_range(GROUPS):
        left_E = tl.where(group_E == group, merit_E, float("-inf"))
        worth = 0.0
        for _ in tl.static_range(GROUP_BEST):
            best, expert = best_of(left_E, e_E, E)
            left_E = tl.where(e_E == expert, float("-inf"), left_E)
            worth += best
        worth_E = tl.where(group_E == group, worth, worth_E)
    is_kept_E = e_E < 0
    for _ in tl.static_range(TOP_GROUPS):
        _best, expert = best_of(worth_E, e_E, E)
        is_chosen_E = group_E == expert // (E // GROUPS)
        is_kept_E = is_kept_E | is_chosen_E
        worth_E = tl.where(is_chosen_E, float("-inf"), worth_E)
    return tl.where(is_kept_E, merit_E, float("-inf"))


@triton.jit
def choose_kernel(
    logit_ptr, correction_ptr, weight_ptr, expert_ptr, row_stride,
    E: tl.constexpr, E_TILE: tl.constexpr, TOP_K: tl.constexpr, K_TILE: tl.constexpr, HAS_CORRECTION: tl.constexpr,
    IS_SIGMOID: tl.constexpr, IS_NORMALISED: tl.constexpr, SCALE: tl.constexpr,
    GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_BEST: tl.constexpr,
):  # fmt: skip
    """One token. Grid: (tokens,)."""
    token, e_E, k_K = tl.program_id(0).to(tl.int64), tl.arange(0, E_TILE), tl.arange(0, K_TILE)
    logit_E = tl.load(logit_ptr + token * row_stride + e_E, mask=e_E < E, other=float("-inf"))
    if IS_SIGMOID:
        score_E = 1 / (1 + tl.exp(-logit_E))
    else:
        score_E = tl.exp(logit_E - tl.max(logit_E, axis=0))
        score_E /= tl.sum(score_E, axis=0)
    merit_E = score_E
    if HAS_CORRECTION:
        merit_E += tl.load(correction_ptr + e_E, mask=e_E < E, other=0)
    merit_E = tl.where(e_E < E, merit_E, float("-inf"))
    if GROUPS > 1:
        merit_E = within_best_groups(merit_E, e_E, E, GROUPS, TOP_GROUPS, GROUP_BEST)
    weight_K, expert_K = tl.zeros([K_TILE], tl.float32), tl.zeros([K_TILE], tl.int64)
    for place in tl.static_range(TOP_K):
        _best, expert = best_of(merit_E, e_E, E)
        is_chosen_E = e_E == expert
        weight_K = tl.where(k_K == place, tl.sum(tl.where(is_chosen_E, score_E, 0.0), axis=0), weight_K)
        expert_K = tl.where(k_K == place, expert.to(tl.int64), expert_K)
        merit_E = tl.where(is_chosen_E, float("-inf"), merit_E)
    if IS_NORMALISED:
        weight_K /= tl.sum(weight_K, axis=0)
    tl.store(weight_ptr + token * TOP_K + k_K, weight_K * SCALE, mask=k_K < TOP_K)
    tl.store(expert_ptr + token * TOP_K + k_K, expert_K, mask=k_K < TOP_K)


def suits(logits_TE: Tensor, correction_E: Tensor | None) -> bool:
    """Whether the kernel can compute this."""
    is_known = logits_TE.dtype == torch.float32 and (correction_E is None or correction_E.dtype == torch.float32)
    return (logits_TE.is_cuda or INTERPRETED) and is_known and logits_TE.shape[1] <= MOST_EXPERTS and logits_TE.stride(1) == 1


def choose(logits_TE: Tensor, correction_E: Tensor | None, *, rule: Rule) -> tuple[Tensor, Tensor]:
    """As the reference's."""
    shape, device = (len(logits_TE), rule.top_k), logits_TE.device
    chosen = torch.empty(shape, dtype=torch.float32, device=device), torch.empty(shape, dtype=torch.int64, device=device)
    launch(logits_TE, correction_E, rule=rule, chosen=chosen).run()
    return chosen


def launch(logits_TE: Tensor, correction_E: Tensor | None, *, rule: Rule, chosen: tuple[Tensor, Tensor]) -> Launch:
    """The kernel over all tokens, into the weights and experts `chosen`."""
    require_dense(correction_E=correction_E, weights_TK=chosen[0], experts_TK=chosen[1])
    num_tokens, num_experts = logits_TE.shape
    return Launch(
        choose_kernel,
        (num_tokens,),
        {
            "logit_ptr": logits_TE, "correction_ptr": correction_E, "weight_ptr": chosen[0], "expert_ptr": chosen[1],
            "row_stride": logits_TE.stride(0),
        },
        {
            "E": num_experts, "E_TILE": triton.next_power_of_2(num_experts),
            "TOP_K": rule.top_k, "K_TILE": triton.next_power_of_2(rule.top_k), "HAS_CORRECTION": correction_E is not None,
            "IS_SIGMOID": rule.scores == "sigmoid", "IS_NORMALISED": rule.is_normalised, "SCALE": float(rule.scale),
            "GROUPS": rule.num_groups, "TOP_GROUPS": rule.top_groups, "GROUP_BEST": rule.group_best,
        },
        Configuration((), num_warps=1 if num_experts <= 256 else 4, num_stages=1),
    )  # fmt: skip
