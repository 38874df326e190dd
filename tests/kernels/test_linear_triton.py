"""Linears as GPUs keep them: what is packed against its definition, the Triton kernel against the reference.

`KERNEL_CASES` is how many random shapes are compared (18 by default).
"""

import os
from random import Random

import pytest
import torch

from actorllm_kernels.linear import Int4, Int8, IntWeight, WeightOnly, reference

device = pytest.importorskip("actorllm_kernels.device", exc_type=ImportError, reason="needs Triton")
triton = pytest.importorskip("actorllm_kernels.linear.triton", exc_type=ImportError, reason="needs Triton")
triton_expand = pytest.importorskip("actorllm_kernels.linear.triton_expand", exc_type=ImportError, reason="needs Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
NUM_CASES = int(os.environ.get("KERNEL_CASES", "18"))


def draw_codes(outputs: int, inputs: int, bits: int, group_len: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    top = 2 ** (bits - 1)
    codes = torch.randint(-top, top, (outputs, inputs), generator=generator, dtype=torch.int8)
    return codes.to(DEVICE), (torch.rand(outputs, inputs // (group_len or inputs), generator=generator) / top).to(DEVICE)


def draw(rows: int, outputs: int, inputs: int, bits: int, group_len: int | None) -> tuple[torch.Tensor, IntWeight]:
    weight = reference.pack_by_output(*draw_codes(outputs, inputs, bits, group_len), num_bits=bits)
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(DEVICE), weight


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_len", [None, 24, 48])
def test_packed_codes_stand_for_what_they_did(bits, group_len):
    codes, scales = draw_codes(5, 144, bits, group_len)
    weight = reference.pack_by_output(codes, scales, num_bits=bits)
    assert weight.codes_OI.shape == (5, 144 if bits == 8 else 72)
    assert torch.equal(weight.values(), codes * scales.repeat_interleave(group_len or 144, dim=1))


@pytest.mark.parametrize(("inputs", "group_len"), [(512, 128), (320, 32), (40, 40), (33, 33)])
def test_groups_of_4_bits_never_lie_across_both_halves_of_a_row(inputs, group_len):
    form = WeightOnly(4)
    weight_OI = torch.randn(6, inputs, generator=torch.Generator().manual_seed(1))
    codes = form.codes(weight_OI)
    packed = IntWeight(*form.pack(codes))
    assert inputs // codes[1].shape[1] == group_len
    assert packed.group_len == packed.num_inputs or packed.codes_OI.shape[1] % packed.group_len == 0
    assert (form.values(codes) - weight_OI).norm() < 0.17 * weight_OI.norm()


@pytest.mark.parametrize(("bits", "of_cpus"), [(8, Int8()), (4, Int4(128))])
def test_codes_are_those_of_cpus(bits, of_cpus):
    weight = torch.randn(6, 512)
    for ours, theirs in zip(WeightOnly(bits).codes(weight), of_cpus.codes(weight), strict=True):
        assert torch.equal(ours.flatten(), theirs.flatten())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [33, 40, 256])
def test_a_linear_is_the_product_of_the_values(bits, inputs):
    form = WeightOnly(bits)
    weight_OI, x = torch.randn(7, inputs), torch.randn(3, inputs)
    codes = form.codes(weight_OI)
    packed, outputs = form.pack(codes), torch.tensor([6, 0, 3])
    torch.testing.assert_close(form.linear(x, packed, 7), x @ form.values(codes).T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(form.rows(packed, outputs, inputs), form.values(codes)[outputs], atol=0, rtol=0)


def draw_case(rng: Random, bits: int) -> tuple[int, int, int, int, int | None]:
    """Rows, outputs, inputs, bits and inputs of a group; of 4 bits half the inputs are whole groups."""
    group_len = rng.choice((None, None, 16, 32, 48, 64, 128))
    inputs = 2 * rng.randint(1, 300) if group_len is None else 2 * group_len * rng.randint(1, max(1, 320 // group_len))
    return rng.choice((1, 2, 5, 16, 17, 33, 64)), rng.choice((1, 33, 48, 70, 130, rng.randint(1, 200))), inputs, bits, group_len


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_equals_the_reference(seed, monkeypatch):
    """Any rows, outputs and inputs, in whole groups and in narrow ones; rows that lie apart, too."""
    rng, dtype = Random(seed), list(TOLERANCE)[seed % 3]
    monkeypatch.setattr(device, "PROGRAMS_PER_PROCESSOR", rng.choice((1, 4)))
    case = draw_case(rng, (4, 8)[seed // 3 % 2])
    x, weight = draw(*case)
    x = rng.choice((x, torch.cat((x, x + torch.nan), dim=1)[:, : x.shape[1]], x.t().contiguous().t())).to(dtype)
    assert triton.suits(x, weight), case
    got = triton.linear_weight_only(x, weight)
    expected = reference.linear_weight_only(x.float(), weight)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=TOLERANCE[dtype] * max(1, expected.abs().max().item()), rtol=0)


def test_inputs_in_parts_are_added_in_order():
    x, weight = draw(2, 16, 1024, 8, None)
    out = torch.full((2, 16), torch.nan, device=DEVICE)
    found = triton.launches(x, weight, out_MN=out)
    assert found[0].constants["PARTS"] > 1
    for launch in found:
        launch.run()
    torch.testing.assert_close(out, reference.linear_weight_only(x, weight), atol=1e-3, rtol=1e-4)
    assert torch.equal(triton.linear_weight_only(x, weight), out)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "is_one_kernel"), [(65, True), (256, True), (257, False), (1000, False)])
def test_many_rows(rows, is_one_kernel, bits, monkeypatch):
    """In tiles of rows, or by torch's product with values that a kernel writes a block of outputs at a time; never the reference."""
    x, weight = draw(rows, 70, 256, bits, 32)
    x = x.half()
    monkeypatch.setattr(triton_expand, "EXPANDED_BYTES", 2 * 256 * 40)
    expected = reference.linear_weight_only(x.float(), weight)
    monkeypatch.setattr(reference.IntWeight, "values", None)
    assert triton.suits(x, weight) and triton.fits_one_kernel(x, weight) == is_one_kernel
    got = triton.linear_weight_only(x, weight)
    torch.testing.assert_close(got.float(), expected, atol=2e-3 * expected.abs().max().item(), rtol=0)


def test_rows_in_tiles_have_their_own_parts():
    x, weight = draw(200, 16, 1024, 8, None)
    out = torch.full((200, 16), torch.nan, device=DEVICE, dtype=torch.float16)
    found = triton.launches(x.half(), weight, out_MN=out)
    assert found[0].grid[0] == 2 and found[0].constants["PARTS"] > 1
    for launch in found:
        launch.run()
    torch.testing.assert_close(out.float(), reference.linear_weight_only(x.half().float(), weight), atol=0.1, rtol=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_len", [None, 1, 3, 24, 128])
def test_values_are_written_as_the_reference_has_them(bits, group_len):
    for dtype in TOLERANCE:
        weight = draw(1, 7, 2 * (group_len or 1000) * 3, bits, group_len)[1]
        out = torch.full((7, weight.num_inputs), torch.nan, device=DEVICE, dtype=dtype)
        triton_expand.launch(weight, out).run()
        largest_error = 2**-7 if dtype == torch.bfloat16 else 0  # which the interpreter rounds towards zero
        torch.testing.assert_close(out.float(), weight.values().to(dtype).float(), rtol=largest_error, atol=0)


@pytest.mark.parametrize("case", [(2, 16, 60, 8, 20), (2, 16, 120, 4, 20), (65, 16, 64, 8, None)])
def test_groups_that_no_tile_fits_and_float32_are_expanded(case):
    x, weight = draw(*case)
    assert triton.suits(x, weight) and not triton.fits_one_kernel(x, weight)
    torch.testing.assert_close(triton.linear_weight_only(x, weight), reference.linear_weight_only(x, weight))


def test_what_the_kernels_are_not_for():
    x, weight = draw(2, 16, 64, 8, 16)
    codes, scales = weight.codes_OI, weight.scales_OG
    columns = IntWeight(codes.T.contiguous().T, scales), IntWeight(codes, scales.T.contiguous().T)
    assert triton.suits(x, weight)
    for given in ((x[:0], weight), (x.unsqueeze(0), weight), (x[:, :32], weight), *((x, each) for each in columns)):
        assert not triton.suits(*given)
