"""Root mean square normalisation against its formula."""

import torch

from actorllm_kernels.norm.reference import rms_norm


def test_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, 16, dtype=torch.float64, generator=generator).mul(3).split((5, 1))
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 0.01).sqrt() * weight
    got = rms_norm(x.float(), weight[0].float(), eps=0.01)
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)


def test_a_float32_weight_multiplies_in_float32():
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(4, 64, generator=generator).bfloat16(), 1 + torch.randn(64, generator=generator)
    expected = x.double() / x.double().pow(2).mean(-1, keepdim=True).sqrt() * weight.double()
    assert torch.equal(rms_norm(x, weight, eps=0.0), expected.bfloat16())  # rounded once


def test_half_precision_keeps_the_mean_in_float32():
    x = torch.full((1, 4096), 300.0, dtype=torch.float16)  # its squares overflow in float16
    assert torch.equal(rms_norm(x, torch.ones(4096, dtype=torch.float16), eps=1e-6), torch.ones_like(x))
