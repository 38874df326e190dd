"""Normalisation layers against their formulas."""

import torch

from actorllm.layers.norm import RMSNorm
from actorllm.weights.random import RandomWeights


def test_a_weight_that_is_stored_less_one():
    source = RandomWeights(std=0.5, dtype=torch.bfloat16)
    norm = RMSNorm(16, eps=0.1, weight_offset=1.0)
    norm.load(source, "norm.")
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = 1 + source.tensor("norm.weight", (16,)).double()
    expected = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * weight
    assert torch.equal(norm(x), expected.bfloat16())
