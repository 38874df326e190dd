"""Normalisation layers against their formulas."""

import pytest
import torch

from actorllm.layers.norm import HeadNorm, LayerNorm, RMSNorm
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


@pytest.mark.parametrize("name_of_head", [None, "q_layernorm.norms.{}"])
def test_heads_with_weights_of_their_own(name_of_head):
    source = RecordingWeights(RandomWeights(std=0.5))
    norm = HeadNorm(4, 8, heads=(1, 3), eps=0.1, name_of_head=name_of_head)
    norm.load(source, "attn.q_norm.")
    if name_of_head is None:
        weight_HD = source.tensor("attn.q_norm.weight", (4, 8))
    else:
        weight_HD = torch.stack([source.tensor(f"attn.q_layernorm.norms.{head}.weight", (8,)) for head in range(4)])
        assert set(source.pulled) == {f"attn.q_layernorm.norms.{head}.weight" for head in range(4)}
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)) * 3 + 5
    expected = x - x.mean(-1, keepdim=True)
    expected = expected / (expected.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * weight_HD[1:3]
    torch.testing.assert_close(norm(x), expected)
    norm.unload()
    assert norm.weight_HD is None
