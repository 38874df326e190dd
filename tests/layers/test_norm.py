"""Normalisation layers against their formulas."""

import pytest
import torch

from actorllm.layers.norm import LayerNorm, RMSNorm
from actorllm.testing.recording import RecordingWeights
from actorllm.weights.random import RandomWeights


def test_a_weight_that_is_stored_less_one():
    source = RandomWeights(std=0.5, dtype=torch.bfloat16)
    norm = RMSNorm(16, eps=0.1, weight_offset=1.0)
    norm.load(source, "norm.")
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = 1 + source.tensor("norm.weight", (16,)).double()
    expected = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * weight
    assert torch.equal(norm(x), expected.bfloat16())


@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_layer_norm_with_and_without_weight_and_bias(has_weight, has_bias, dtype, tolerance):
    source = RandomWeights(std=0.5, dtype=dtype)
    norm = LayerNorm(16, eps=0.1, has_weight=has_weight, has_bias=has_bias)
    norm.load(source, "norm.")
    x = (torch.randn(3, 16, generator=torch.Generator().manual_seed(0)) * 3 + 5).to(dtype)
    expected = x.double() - x.double().mean(-1, keepdim=True)
    expected /= (expected.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()
    expected = expected * (source.tensor("norm.weight", (16,)) if has_weight else 1)
    expected = expected + (source.tensor("norm.bias", (16,)) if has_bias else 0)
    got = norm(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected.double(), atol=tolerance, rtol=tolerance)


def test_a_norm_pulls_only_what_it_has():
    source = RecordingWeights(RandomWeights())
    for name, has_weight, has_bias in (("a", True, False), ("b", False, True), ("c", False, False)):
        LayerNorm(16, eps=0.1, has_weight=has_weight, has_bias=has_bias).load(source, f"{name}.")
    assert set(source.pulled) == {"a.weight", "b.bias"}
