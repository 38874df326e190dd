"""Products with weights of a few bits: the format against its definition, the Triton kernel against the reference."""

import random

import pytest
import torch

from actorllm_kernels.linear_int import IntWeight, linear_int, pack, quantize_weight, reference

triton = pytest.importorskip("actorllm_kernels.linear_int.triton", exc_type=ImportError, reason="needs Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
CASES = [
    (1, 48, 64, 8, None),
    (5, 70, 96, 8, 32),
    (16, 64, 256, 4, 64),
    (3, 130, 128, 4, None),
    (33, 40, 320, 4, 32),
    (2, 33, 50, 8, None),
]
"""Rows, outputs, inputs, bits and inputs of a group."""


def draw(rows: int, outputs: int, inputs: int, bits: int, group_len: int | None) -> tuple[torch.Tensor, IntWeight, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(outputs, inputs, generator=generator) * torch.rand(outputs, 1, generator=generator).exp()
    quantized = quantize_weight(weight.to(DEVICE), num_bits=bits, group_len=group_len)
    return (
        torch.randn(rows, inputs, generator=generator).to(DEVICE),
        quantized,
        torch.randn(outputs, generator=generator).to(DEVICE),
    )


@pytest.mark.parametrize(("bits", "group_len"), [(8, None), (8, 32), (4, None), (4, 16)])
def test_codes_are_the_nearest(bits, group_len):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    quantized = quantize_weight(weight, num_bits=bits, group_len=group_len)
    assert (quantized.num_inputs, quantized.group_len) == (64, group_len or 64)
    for output in range(6):
        for begin in range(0, 64, quantized.group_len):
            group = weight[output, begin : begin + quantized.group_len]
            step = group.abs().max() / (127 if bits == 8 else 7)
            error = (quantized.dense()[output, begin : begin + quantized.group_len] - group).abs()
            assert (error <= step / 2 + 1e-6).all()


def test_two_codes_in_a_byte():
    codes = torch.randint(-8, 8, (5, 12), dtype=torch.int8)
    weight = IntWeight(pack(codes), torch.ones(5, 1))
    assert weight.codes.shape == (5, 6)
    assert torch.equal(weight.dense(), codes.float())


def test_equals_the_product_with_dense_weights():
    x, weight, bias = draw(5, 70, 96, 8, 32)
    torch.testing.assert_close(linear_int(x, weight, bias), x @ weight.dense().T + bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_reference(case, dtype, monkeypatch):
    monkeypatch.setattr(triton, "PROGRAMS_PER_PROCESSOR", random.Random(str(case)).choice((1, 4)))
    x, weight, bias = draw(*case)
    assert triton.suits(x.to(dtype), weight)
    got = triton.linear_int(x.to(dtype), weight, bias if case[0] % 2 else None)
    expected = reference.linear_int(x.to(dtype).float(), weight, bias if case[0] % 2 else None)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=TOLERANCE[dtype] * expected.abs().max().item(), rtol=0)


def test_inputs_in_parts_are_added_in_order():
    x, weight, _ = draw(2, 16, 1024, 8, None)
    out = torch.full((2, 16), torch.nan, device=DEVICE)
    found = triton.launches(x, weight, None, out_MN=out)
    assert found[0].constants["PARTS"] > 1
    for launch in found:
        launch.run()
    torch.testing.assert_close(out, reference.linear_int(x, weight), atol=1e-3, rtol=1e-4)
    assert torch.equal(triton.linear_int(x, weight), out)


def test_what_the_kernel_is_not_for():
    x, weight, _ = draw(2, 16, 60, 8, 20)  # groups that no tile fits
    assert not triton.suits(x, weight)
    x, weight, _ = draw(65, 16, 64, 8, None)  # many rows
    assert not triton.suits(x, weight)
