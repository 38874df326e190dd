"""Linears in 8-bit floats: the reference against the definition, the Triton kernels against the reference.

`KERNEL_CASES` is how many random shapes are compared (12 by default).
"""

import os
from random import Random

import pytest
import torch

from actorllm_kernels.linear import Fp8, reference
from actorllm_kernels.quantize import quantize

triton_fp8 = pytest.importorskip("actorllm_kernels.linear.triton_fp8", exc_type=ImportError, reason="needs Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IS_NATIVE = DEVICE.type == "cuda" and triton_fp8.is_native(DEVICE)
"""Then sums are exact to few bits."""
TOLERANCE = {torch.float32: 2e-3 if IS_NATIVE else 1e-5, torch.float16: 3e-3 if IS_NATIVE else 1e-3, torch.bfloat16: 1e-2}
NUM_CASES = int(os.environ.get("KERNEL_CASES", "12"))


def draw(rows: int, outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of activations and of weights, each of a size of its own."""
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(number, inputs, generator=generator) for number in (rows, outputs))
    return (x * (torch.arange(rows) + 0.1).unsqueeze(1)).to(DEVICE), (weight * torch.rand(outputs, 1, generator=generator)).to(
        DEVICE
    )


def test_the_reference_is_the_product_of_rounded_rows():
    x, weight = draw(5, 7, 40)
    got = Fp8().linear(x, Fp8().pack(Fp8().codes(weight)), 7)
    for row in range(5):
        for output in range(7):
            (a, a_scale), (b, b_scale) = (quantize(each, torch.float8_e4m3fn) for each in (x[row], weight[output]))
            assert got[row, output].item() == pytest.approx(
                (a.double() @ b.double() * a_scale * b_scale).item(), rel=1e-4, abs=1e-4
            )
    assert (got - x @ weight.T).norm() < 0.05 * (x @ weight.T).norm()


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_equals_the_reference(seed):
    rng, dtype = Random(seed), list(TOLERANCE)[seed % 3]
    outputs, inputs = rng.choice((1, 33, 48, 130, rng.randint(1, 200))), rng.choice((1, 50, 64, 300, 2500, rng.randint(1, 700)))
    x, weight = draw(rng.choice((1, 2, 5, 16, 33, 65, 140)), outputs, inputs)
    x = rng.choice((x, torch.cat((x, x + torch.nan), dim=1)[:, :inputs], x.t().contiguous().t())).to(dtype)
    codes, scales = reference.fp8_codes(weight)
    assert triton_fp8.suits(x)
    got = triton_fp8.linear_fp8(x, codes, scales)
    expected = reference.linear_fp8(x.float(), codes, scales)
    assert got.dtype == dtype
    error = (got.float() - expected).norm(dim=1) / expected.norm(dim=1)
    assert (error < TOLERANCE[dtype]).all()


@pytest.mark.parametrize("rows", [1, 5, 33])
def test_products_of_8_bit_floats_themselves(rows, monkeypatch):
    """As GPUs compute them that have a unit for it: here the interpreter does."""
    x, weight = draw(rows, 40, 300)
    monkeypatch.setattr(triton_fp8, "is_native", lambda device: True)
    packed, out = reference.fp8_codes(weight), torch.full((rows, 40), torch.nan, device=DEVICE)
    found = triton_fp8.launches(x, *packed, out_MN=out)
    assert found[1].constants["IS_NATIVE"] and found[1].arguments["code_ptr"].dtype == torch.float8_e4m3fn
    for launch in found:
        launch.run()
    expected = reference.linear_fp8(x, *packed)
    assert ((out - expected).norm(dim=1) / expected.norm(dim=1) < 2e-3).all()


def test_few_rows_cut_the_inputs_into_parts():
    x, weight = draw(2, 16, 4096)
    found = triton_fp8.launches(x, *reference.fp8_codes(weight), out_MN=torch.empty(2, 16, device=DEVICE))
    assert [launch.name for launch in found] == ["round_rows_kernel", "fp8_kernel", "add_parts_kernel"]


def test_rows_are_rounded_as_keys_and_values_are():
    x, weight = draw(6, 16, 300)
    x[3] = 0
    wide = torch.randn(6, 400, device=DEVICE)
    wide[:, :300] = x
    rounding = triton_fp8.launches(wide[:, :300], *reference.fp8_codes(weight), out_MN=torch.empty(6, 16, device=DEVICE))[0]
    rounding.run()
    codes, scales = reference.fp8_codes(x)
    assert torch.equal(rounding.arguments["scale_ptr"], scales)
    assert torch.equal(rounding.arguments["code_ptr"], codes)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite_spoils_its_own_row(value):
    x, weight = draw(5, 16, 64)
    x[2, 9] = value
    packed = reference.fp8_codes(weight)
    for got in (triton_fp8.linear_fp8(x, *packed), reference.linear_fp8(x, *packed)):
        assert got[2].isnan().all() and got[[0, 1, 3, 4]].isfinite().all()


def test_what_the_kernel_is_not_for():
    assert not triton_fp8.suits(torch.zeros(0, 8, device=DEVICE)) and not triton_fp8.suits(torch.zeros(2, 8, 8, device=DEVICE))
