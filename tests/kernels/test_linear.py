"""Linears with compact weights against the plain product of the values that their codes stand for."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actorllm.weights.compact import PackedWeight
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.linear import Bf16, Int4, Int8, cpu, reference
from actorllm_kernels.native import library

needs_compiler = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
OPERATORS = [pytest.param(cpu, id="cpu", marks=needs_compiler), pytest.param(reference, id="reference")]
FORMS = [
    pytest.param(Bf16(), id="bfloat16"),
    pytest.param(Int8(), id="int8"),
    pytest.param(Int4(32), id="int4 by 32"),
    pytest.param(Int4(128), id="int4 by 128"),
]

NUM_ROWS = st.integers(1, 12) | st.integers(13, 130)
sizes = st.tuples(st.integers(0, 12) | st.integers(13, 70), st.integers(1, 150), st.integers(1, 600))


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


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_bf16_of_many_rows_keeps_what_is_not_finite_apart(value):
    x_TI, w_OI = rows_and_weights(40, 20, 70)
    x_TI[33, 69] = value
    w_OI[15, 9] = value
    got = Bf16().linear(x_TI, (packed_bf16(w_OI),), 20)
    assert not got[33].isfinite().any() and not got[:, 15].isfinite().any()
    got[33], got[:, 15], x_TI[33, 69], w_OI[15, 9] = 0, 0, 0, 0
    expected = x_TI @ w_OI.bfloat16().float().T
    expected[33], expected[:, 15] = 0, 0
    close(got, expected)


@pytest.mark.parametrize("operator", OPERATORS)
def test_bf16_with_denormals(operator):
    x_TI, w_OI = torch.full((2, 16), 1e-40), torch.ones(3, 16)
    torch.testing.assert_close(operator.linear_bf16(x_TI, packed_bf16(w_OI), 3), torch.full((2, 3), 16e-40), atol=1e-44, rtol=1e-4)
    tiny = torch.full((3, 16), 2.0**-130)
    torch.testing.assert_close(operator.linear_bf16(torch.ones(2, 16), packed_bf16(tiny), 3), torch.full((2, 3), 2.0**-126), atol=0, rtol=1e-3)


def exact_codes(x_TI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A row's codes and scale, written out value by value."""
    codes, scales = torch.zeros(x_TI.shape, dtype=torch.int64), torch.zeros(len(x_TI))
    for row, values in enumerate(x_TI):
        largest = max(map(abs, values.tolist()))
        factor = float(torch.tensor(127.0) / torch.tensor(largest))
        codes[row] = torch.tensor([round(value * factor) for value in values.tolist()])
        scales[row] = torch.tensor(largest) / 127
    return codes, scales


@pytest.mark.parametrize("operator", OPERATORS)
@settings(deadline=None, max_examples=25)
@given(st.tuples(NUM_ROWS, st.integers(1, 100), st.integers(1, 600)), st.integers(0, 99))
def test_int8_is_the_exact_product_of_codes(operator, shape, seed):
    x_TI, w_OI = rows_and_weights(*shape, seed)
    codes_TI, scales_T = exact_codes(x_TI)
    w_codes_OI, w_scales_O = reference.int8_codes(w_OI)
    got = operator.linear_int8(x_TI, *reference.pack_int8(w_codes_OI, w_scales_O), len(w_OI))
    expected = (codes_TI @ w_codes_OI.long().T).float() * scales_T.unsqueeze(1) * w_scales_O
    assert torch.equal(got, expected)


@pytest.mark.parametrize("operator", OPERATORS)
@settings(deadline=None, max_examples=25)
@given(
    st.tuples(NUM_ROWS, st.integers(1, 100), st.integers(1, 600)), st.sampled_from([32, 64, 128]), st.integers(0, 99)
)
@example((77, 1, 132), 32, 43)  # a value that lies between two codes but for its product's rounding
def test_int4_is_the_product_of_codes(operator, shape, group_len, seed):
    x_TI, w_OI = rows_and_weights(*shape, seed)
    codes_TI, scales_T = exact_codes(x_TI)
    codes = reference.int4_codes(w_OI, group_len)
    got = operator.linear_int4(x_TI, *reference.pack_int4(*codes, group_len), len(w_OI))
    values_OI = reference.int4_values(*codes, group_len).double()
    close(got, codes_TI.double() @ values_OI.T * scales_T.double().unsqueeze(1))


def scales_of_others(scales_OG: torch.Tensor) -> torch.Tensor:
    """Scales of the same size that are not multiples of a unit."""
    return scales_OG * torch.rand(scales_OG.shape, generator=torch.Generator().manual_seed(7)).add(0.5).bfloat16()


@pytest.mark.parametrize("num_others", [1, 33, 50])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("num_rows", [1, 40])
def test_int4_with_scales_of_others(operator, num_rows, num_others):
    x_TI, w_OI = rows_and_weights(num_rows, 50, 300)
    codes_OI, scales_OG = reference.int4_codes(w_OI, 32)
    scales_OG[:num_others] = scales_of_others(scales_OG)[:num_others]
    got = operator.linear_int4(x_TI, *reference.pack_int4(codes_OI, scales_OG, 32), 50)
    row_codes_TI, scales_T = exact_codes(x_TI)
    values_OI = reference.int4_values(codes_OI, scales_OG, 32).double()
    close(got, row_codes_TI.double() @ values_OI.T * scales_T.double().unsqueeze(1))


def test_scales_of_int4_are_small_multiples_of_a_unit():
    w_OI = rows_and_weights(1, 50, 256)[1]
    w_OI[3], w_OI[4, :32], w_OI[5, 40], w_OI[6] = 0, 0, 100, w_OI[6] * 1e-3
    codes_OI, scales_OG = reference.int4_codes(w_OI, 32)
    units = scales_OG.float() / scales_OG.float().abs().amax(1, keepdim=True) * 15
    units = units[torch.arange(50) != 3]
    assert torch.equal(units, units.round())
    plain_OG = (w_OI.view(50, 8, 32).abs().amax(2) / 7).bfloat16()
    plain_OI = (w_OI / plain_OG.float().repeat_interleave(32, 1)).nan_to_num(0.0).round()
    errors = [(reference.int4_values(*given, 32) - w_OI).square().sum() for given in ((codes_OI, scales_OG), (plain_OI, plain_OG))]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("num_rows", [1, 40])
@pytest.mark.parametrize("ratio", [0.3, 0.01, 1e-4, 0.0])
def test_groups_of_an_output_may_differ_in_size(num_rows, ratio):
    x_TI, w_OI = rows_and_weights(num_rows, 50, 256)
    codes_OI, scales_OG = reference.int4_codes(w_OI, 32)
    scales_OG[:, ::2] *= ratio
    x_TI.view(num_rows, 8, 32)[:, 1::2] *= 0 if ratio else 1  # what is left is of the small groups
    packed = reference.pack_int4(codes_OI, scales_OG, 32)
    expected = reference.linear_int4(x_TI, *packed, 50)
    got = Int4(32).linear(x_TI, packed, 50)
    torch.testing.assert_close(got / max(ratio, 1e-4), expected / max(ratio, 1e-4), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("operator", OPERATORS)
def test_extreme_codes_do_not_saturate(operator):
    x_TI = torch.tensor([[1.0], [-1.0]]).expand(2, 512)
    ones = torch.ones(17, 512, dtype=torch.int8)
    packed = reference.pack_int8(ones * 127, torch.ones(17))
    close(operator.linear_int8(x_TI, *packed, 17), torch.tensor([[512.0 * 127], [-512.0 * 127]]).expand(2, 17))
    x_TI = x_TI.repeat(16, 1)
    for code in (-8, 7):
        for group_len in (32, 128):
            scales = torch.full((17, 512 // group_len), -1.9921875).bfloat16()
            packed = reference.pack_int4(ones * code, scales, group_len)
            expected = torch.tensor([[512.0 * code], [-512.0 * code]]).expand(2, 17).repeat(16, 1) * -1.9921875
            close(operator.linear_int4(x_TI, *packed, 17), expected)


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("num_rows", [8, 24])
def test_what_is_not_finite_spoils_its_own_row_or_output(form, value, num_rows):
    x_TI, w_OI = rows_and_weights(num_rows, 20, 140)
    w_OI[:, 35] *= 50  # groups differ in size
    expected = form.linear(x_TI, form.pack(form.codes(w_OI)), 20)
    x_TI[3, 7] = value
    w_OI[15, 9] = value
    got = form.linear(x_TI, form.pack(form.codes(w_OI)), 20)
    assert got[3].isnan().all() and not got[:, 15].isfinite().any()
    kept = torch.ones_like(got, dtype=torch.bool)
    kept[3], kept[:, 15] = False, False
    torch.testing.assert_close(got[kept], expected[kept], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("num_rows", [1, 20])
def test_sums_of_very_many_inputs_do_not_wrap_around(form, num_rows):
    """All codes are the largest, and their sum takes more than 32 bits."""
    x_TI, codes = torch.ones(num_rows, 140_000), form.codes(torch.full((17, 140_000), -1.99))
    assert cpu.MOST_CODED_INPUTS < 140_000 and cpu.MOST_CODED_INPUTS * 127 * 128 < 2**31
    expected = x_TI.double() @ form.values(codes).double().T
    torch.testing.assert_close(form.linear(x_TI, form.pack(codes), 17).double(), expected, rtol=1e-3, atol=0)


@needs_compiler
@pytest.mark.parametrize("num_rows", [1, 20])
def test_the_largest_sums_that_kernels_take_are_exact(num_rows):
    x_TI = torch.ones(num_rows, cpu.MOST_CODED_INPUTS)
    packed = reference.pack_int8(torch.full((17, cpu.MOST_CODED_INPUTS), -128, dtype=torch.int8), torch.ones(17))
    assert cpu.suits_codes(x_TI)
    close(cpu.linear_int8(x_TI, *packed, 17), torch.full((num_rows, 17), -128.0 * cpu.MOST_CODED_INPUTS))


@pytest.mark.parametrize("form", FORMS[1:])
def test_rows_of_almost_nothing_are_zero(form):
    _, w_OI = rows_and_weights(1, 20, 40)
    packed = form.pack(form.codes(w_OI))
    assert not form.linear(torch.stack((torch.full((40,), 1e-40), torch.zeros(40))), packed, 20).any()
    small = torch.full((1, 40), 1e-25)
    torch.testing.assert_close(form.linear(small, packed, 20) * 1e25, form.linear(small * 1e25, packed, 20), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("shape", [(0, 3, 5), (3, 0, 5), (2, 3, 0), (1, 1, 1), (70, 64, 1100)])
def test_codes_at_the_edges(form, shape):
    x_TI, w_OI = rows_and_weights(*shape)
    codes = form.codes(w_OI)
    got = form.linear(x_TI, form.pack(codes), len(w_OI))
    assert got.shape == (shape[0], shape[1])
    expected = x_TI @ form.values(codes).T
    assert (got - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize(("form", "most"), [(Int8(), 0.008), (Int4(32), 0.1), (Int4(128), 0.13)], ids=["int8", "int4", "int4 by 128"])
def test_codes_are_near_the_values(form, most):
    _, w_OI = rows_and_weights(1, 64, 512)
    assert (form.values(form.codes(w_OI)) - w_OI).norm() / w_OI.norm() < most


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 6, 7, 13, 40, 120])
def test_a_row_does_not_depend_on_its_mates(form, num_rows):
    """But for the order in which floats are summed; few rows are codes, whose sums are exact."""
    has_exact_sums = not isinstance(form, Bf16) and (num_rows < 20 or isinstance(form, Int8))
    x_TI, w_OI = rows_and_weights(num_rows, 75, 300)
    packed = form.pack(form.codes(w_OI))
    together = form.linear(x_TI, packed, 75)
    for row in range(num_rows):
        alone = form.linear(x_TI[row : row + 1], packed, 75)
        if library() is not None and has_exact_sums:
            assert torch.equal(together[row : row + 1], alone)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("product", [GatedProduct("silu"), GatedProduct("gelu_tanh"), GatedProduct("relu"), GatedProduct(limit=2.0)])
@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=20)
@given(sizes, st.integers(0, 99))
@example((1600, 128, 500), 0)  # rows of several blocks
@example((40, 240, 50), 0)  # groups of panels, the last one short
@example((40, 0, 64), 0)
@example((0, 32, 64), 0)
def test_the_product_of_the_halves_is_that_of_the_outputs(form, product, shape, seed):
    num_rows, num_gates, num_inputs = shape
    x_TI, w_OI = rows_and_weights(num_rows, 2 * num_gates, num_inputs, seed)
    packed = form.pack(form.codes(w_OI))
    got = form.gated(x_TI, packed, 2 * num_gates, product)
    assert got.shape == (num_rows, num_gates)
    assert torch.equal(got, product(*form.linear(x_TI, packed, 2 * num_gates).chunk(2, dim=-1)))


@pytest.mark.parametrize("form", FORMS)
def test_threads_share_the_product_of_the_halves(form):
    x_TI, w_OI = rows_and_weights(1600, 896, 500)
    packed, product = form.pack(form.codes(w_OI)), GatedProduct("silu")
    expected = product(*form.linear(x_TI, packed, 896).chunk(2, dim=-1))
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(form.gated(x_TI, packed, 896, product), expected)
    finally:
        torch.set_num_threads(num_threads)


@needs_compiler
@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_gives_the_product_where_it_can(form, monkeypatch):
    x_TI, w_OI = rows_and_weights(20, 64, 64)
    weight = PackedWeight(form, form.pack(form.codes(w_OI)), shape=(64, 64))
    expected = weight.gated(x_TI, GatedProduct("silu"))
    monkeypatch.setattr(type(form), "linear", None)
    assert torch.equal(weight.gated(x_TI, GatedProduct("silu")), expected)
    with pytest.raises(TypeError):
        weight.gated(x_TI, GatedProduct("relu"))


@needs_compiler
@pytest.mark.parametrize("num_rows", [3, 40])
def test_the_first_half_are_the_gates(num_rows):
    x_TI, w_OI = rows_and_weights(num_rows, 96, 50)
    gate_TO, up_TO = (x_TI.double() @ w_OI.bfloat16().double().T).chunk(2, dim=-1)
    close(cpu.linear_bf16(x_TI, packed_bf16(w_OI), 96, GatedProduct("silu")), torch.nn.functional.silu(gate_TO) * up_TO)


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
def test_rows_that_are_looked_up_are_the_matrix_s_values(form, shape, seed):
    _, w_OI = rows_and_weights(*shape, seed)
    codes = form.codes(w_OI)
    outputs = torch.randint(len(w_OI), (7,), generator=torch.Generator().manual_seed(seed))
    expected = form.values(codes)[outputs]
    assert torch.equal(form.rows(form.pack(codes), outputs, w_OI.shape[1]), expected)
    assert torch.equal(form.values_of(codes, outputs), expected)


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
