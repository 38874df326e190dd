"""Choosing and sorting experts: the Triton kernels against their reference and torch's sort, over random shapes.

`KERNEL_CASES` is how many are compared (24 by default).
"""

import os
from random import Random

import pytest
import torch

from actorllm_kernels.routing import Rule, reference

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels.experts import triton as experts_triton
from actorllm_kernels.routing import triton as routing_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_CASES = int(os.environ.get("KERNEL_CASES", "24"))


def draw_rule(rng: Random) -> Rule:
    """Of all experts, or of the best groups; numbers that are no powers of two, too."""
    num_groups, size = rng.choice((1, 1, 4, 8, 5)), rng.choice((3, 8, 20, 32))
    top_groups = rng.randint(1, num_groups)
    top_k = rng.randint(1, min(8, top_groups * size))
    scores, is_normalised, scale = rng.choice(("softmax", "sigmoid")), rng.random() < 0.5, rng.choice((1.0, 2.5))
    return Rule(num_groups * size, top_k, scores, is_normalised, scale, num_groups, top_groups, rng.choice((1, 2)))


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_choosing_equals_the_reference(seed):
    rng, generator = Random(seed), torch.Generator().manual_seed(seed)
    rule, num_tokens = draw_rule(rng), rng.choice((0, 1, 3, 20))
    wide = torch.randn(num_tokens, rule.num_experts + rng.choice((0, 3)), generator=generator).mul(2).to(DEVICE)
    logits = wide[:, : rule.num_experts]
    correction = rng.choice((None, torch.randn(rule.num_experts, generator=generator).mul(0.3).to(DEVICE)))
    assert routing_triton.suits(logits, correction)
    weights, experts = routing_triton.choose(logits, correction, rule=rule)
    expected_weights, expected_experts = reference.choose(logits, correction, rule=rule)
    assert torch.equal(experts, expected_experts)
    torch.testing.assert_close(weights, expected_weights, atol=1e-5, rtol=1e-5)


def test_of_equal_experts_the_first_are_chosen_and_none_twice():
    _, experts = routing_triton.choose(torch.zeros(2, 10, device=DEVICE), None, rule=Rule(10, 3))
    assert experts.tolist() == [[0, 1, 2]] * 2


def test_what_is_not_finite_chooses_experts_that_there_are():
    logits = torch.full((1, 6), torch.nan, device=DEVICE)
    weights, experts = routing_triton.choose(logits, None, rule=Rule(6, 2))
    assert weights.isnan().all() and ((experts >= 0) & (experts < 6)).all()


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_sorting_is_torchs(seed, monkeypatch):
    monkeypatch.setattr(experts_triton, "SORT_BLOCK", (16, 64, 1024)[seed % 3])
    rng, generator = Random(seed), torch.Generator().manual_seed(seed)
    num_experts, num_tokens, top_k = rng.choice((1, 3, 60, 128)), rng.choice((1, 2, 17, 70)), rng.choice((1, 2, 8))
    chosen = torch.randint(0, rng.randint(1, num_experts), (num_tokens, top_k), generator=generator).to(DEVICE)
    order, begin_E = (torch.full((size,), -7, dtype=torch.int32, device=DEVICE) for size in (chosen.numel(), num_experts + 1))
    experts_triton.sort_launch(chosen, order=order, begin_E=begin_E).run()
    assert torch.equal(order.long(), chosen.flatten().sort(stable=True).indices)
    counts = chosen.flatten().bincount(minlength=num_experts)
    assert begin_E.tolist() == [0, *counts.cumsum(0).tolist()]
