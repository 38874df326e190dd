"""Linears with compact weights against the plain product of the values that their codes stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm_kernels.linear import Bf16, cpu, reference
from actorllm_kernels.native import library

needs_compiler = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
OPERATORS = [pytest.param(cpu, id="cpu", marks=needs_compiler), pytest.param(reference, id="reference")]
FORMS = [pytest.param(Bf16(), id="bfloat16")]

sizes = st.tuples(st.integers(0, 20), st.integers(1, 150), st.integers(1, 600))


def rows_and_weights(num_rows: int, num_outputs: int, num_inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_inputs, generator=generator), torch.randn(num_outputs, num_inputs, generator=generator)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Within what float32 sums of so many terms differ by."""
    assert got.dtype == torch.float32 and got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected.double(), atol=1e-4, rtol=1e-4, equal_nan=True)


def packed_bf16(w_OI: torch.Tensor) -> torch.Tensor:
    return reference.pack_bf16(reference.bf16_codes(w_OI))


@pytest.mark.parametrize("operator", OPERATORS)
@settings(deadline=None, max_examples=25)
@given(sizes, st.integers(0, 99))
def test_bf16_is_the_product_of_the_rounded_values(operator, shape, seed):
    x_TI, w_OI = rows_and_weights(*shape, seed)
    close(operator.linear_bf16(x_TI, packed_bf16(w_OI), len(w_OI)), x_TI.double() @ w_OI.bfloat16().double().T)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("shape", [(0, 3, 5), (3, 0, 5), (2, 3, 0), (1, 1, 1), (70, 64, 1100)])
def test_bf16_at_the_edges(operator, shape):
    x_TI, w_OI = rows_and_weights(*shape)
    close(operator.linear_bf16(x_TI, packed_bf16(w_OI), len(w_OI)), x_TI.double() @ w_OI.bfloat16().double().T)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_bf16_carries_what_is_not_finite_to_its_own_row_or_output(operator, value):
    x_TI, w_OI = rows_and_weights(8, 20, 40)
    x_TI[3, 7] = value
    w_OI[15, 9] = value
    got = operator.linear_bf16(x_TI, packed_bf16(w_OI), 20)
    expected = x_TI @ w_OI.bfloat16().float().T
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert not got[3].isfinite().any() and not got[:, 15].isfinite().any()
    assert got[:3, :15].isfinite().all()


@pytest.mark.parametrize("operator", OPERATORS)
def test_bf16_with_denormals(operator):
    x_TI, w_OI = torch.full((2, 16), 1e-40), torch.ones(3, 16)
    torch.testing.assert_close(operator.linear_bf16(x_TI, packed_bf16(w_OI), 3), torch.full((2, 3), 16e-40), atol=1e-44, rtol=1e-4)
    tiny = torch.full((3, 16), 2.0**-130)
    torch.testing.assert_close(operator.linear_bf16(torch.ones(2, 16), packed_bf16(tiny), 3), torch.full((2, 3), 2.0**-126), atol=0, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 6, 7, 13, 40])
def test_a_row_does_not_depend_on_its_mates(form, num_rows):
    x_TI, w_OI = rows_and_weights(num_rows, 75, 300)
    packed = form.pack(form.codes(w_OI))
    together = form.linear(x_TI, packed, 75)
    for row in range(num_rows):
        alone = form.linear(x_TI[row : row + 1], packed, 75)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_rows_may_lie_anywhere(form):
    x_TI, w_OI = rows_and_weights(9, 33, 64)
    packed = form.pack(form.codes(w_OI))
    expected = form.linear(x_TI, packed, 33)
    wide = torch.randn(9, 80)
    wide[:, 3:67] = x_TI
    assert torch.equal(form.linear(wide[:, 3:67], packed, 33), expected)
    assert torch.equal(form.linear(x_TI.T.contiguous().T, packed, 33), expected)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=20)
@given(sizes, st.integers(0, 99))
def test_rows_of_the_packed_matrix_are_its_values(form, shape, seed):
    _, w_OI = rows_and_weights(*shape, seed)
    codes = form.codes(w_OI)
    outputs = torch.randint(len(w_OI), (7,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(form.rows(form.pack(codes), outputs), form.values(codes)[outputs])


@needs_compiler
def test_the_kernel_runs_where_it_suits(monkeypatch):
    x_TI, w_OI = rows_and_weights(3, 20, 30)
    form = Bf16()
    packed = form.pack(form.codes(w_OI))
    expected = form.linear(x_TI, packed, 20)
    monkeypatch.setattr(cpu, "suits", lambda x: False)
    close(form.linear(x_TI, packed, 20), expected)
    monkeypatch.undo()
    monkeypatch.setattr(reference, "linear_bf16", None)
    close(form.linear(x_TI, packed, 20), expected)
