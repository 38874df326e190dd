"""The C++ kernels between a layer's products, against their references: odd sizes, views, extreme values, empty batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm_kernels import gated, norm, rotary_store
from actorllm_kernels.native import library
from actorllm_kernels.rotary_store import Angles

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")

NUM_SLOTS = 600
rows = st.sampled_from([0, 1, 2, 7, 300])
sizes = st.sampled_from([1, 4, 15, 16, 33, 64, 200])
seeds = st.integers(0, 1000)


def view(rows: int, size: int, seed: int) -> torch.Tensor:
    """[rows, size] inside of a wider tensor that does not begin at an aligned address."""
    return torch.randn(rows, size + 5, generator=torch.Generator().manual_seed(seed))[:, 3 : 3 + size]


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5, equal_nan=True)


@settings(deadline=None, max_examples=60)
@given(rows, sizes, seeds, st.sampled_from([1.0, 1e-20, 1e15]))
def test_norms(num_rows: int, size: int, seed: int, scale: float) -> None:
    x, y, weight = view(num_rows, size, seed) * scale, view(num_rows, size, seed + 1), view(1, size, seed + 2)[0].contiguous()
    assert norm.cpu.suits(x, weight)
    close(norm.cpu.rms_norm(x, weight, eps=1e-6), norm.reference.rms_norm(x, weight, eps=1e-6))
    for got, expected in zip(
        norm.cpu.add_rms_norm(x, y, weight, eps=0.1), norm.reference.add_rms_norm(x, y, weight, eps=0.1), strict=True
    ):
        close(got, expected)


def test_a_norm_of_heads() -> None:
    x, weight = torch.randn(5, 3 * 8)[:, 4:20].view(5, 2, 8), torch.randn(8)
    close(norm.rms_norm(x, weight, eps=1e-6), norm.reference.rms_norm(x, weight, eps=1e-6))


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    x, weight = torch.randn(3, 40), torch.ones(40)
    x[1, 3] = bad
    close(norm.cpu.rms_norm(x, weight, eps=1e-6), norm.reference.rms_norm(x, weight, eps=1e-6))
    close(gated.cpu.gated(x, x, activation="silu"), gated.reference.gated(x, x, activation="silu"))


@settings(deadline=None, max_examples=60)
@given(rows, sizes, seeds, st.sampled_from(sorted(gated.cpu.CODES)), st.sampled_from([1.0, 30.0, 1e-38]))
def test_gated(num_rows: int, size: int, seed: int, activation: str, scale: float) -> None:
    gate, up = view(num_rows, size, seed) * scale, view(num_rows, size, seed + 1)
    assert gated.cpu.suits(gate, up, activation)
    close(gated.cpu.gated(gate, up, activation=activation), gated.reference.gated(gate, up, activation=activation))


@settings(deadline=None, max_examples=60)
@given(
    rows,
    st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.sampled_from([(8, 8, 8), (10, 4, 6), (64, 64, 64), (80, 32, 80)]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    seeds,
)
def test_rotate_and_store(num_rows, heads, dims, is_interleaved, dtype, seed) -> None:
    (num_heads, num_kv_heads), (head_dim, rotary_dim, value_dim) = heads, dims
    widths = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * value_dim]
    q, k, v = view(num_rows, sum(widths), seed).split(widths, dim=1)
    q, k, v = q.unflatten(1, (num_heads, -1)), k.unflatten(1, (num_kv_heads, -1)), v.unflatten(1, (num_kv_heads, -1))
    cos, sin = torch.randn(2, num_rows, 1, rotary_dim)
    slots = torch.randperm(NUM_SLOTS)[:num_rows]
    stored = []
    for operator in (rotary_store.cpu, rotary_store.reference):
        pools = tuple(torch.zeros(NUM_SLOTS, num_kv_heads, size, dtype=dtype) for size in (head_dim, value_dim))
        angles = Angles(cos, sin, is_interleaved)
        assert rotary_store.cpu.suits(q, k, v, angles, pools)
        stored.append((operator.rotate_and_store(q, k, v, angles, slots, pools), *pools))
    for got, expected in zip(*stored, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5 if got.dtype == torch.float32 else 1e-2)


def test_bfloat16_pools_are_rounded_to_nearest() -> None:
    values = torch.tensor([1.0, 1.00390625, 1.01171875, -3.0001, 1e-40, torch.inf, torch.nan, 0.1]).view(1, 1, 8)
    still = Angles(torch.ones(1, 1, 8), torch.zeros(1, 1, 8))
    pools = tuple(torch.zeros(1, 1, 8, dtype=torch.bfloat16) for _ in range(2))
    rotary_store.cpu.rotate_and_store(values, values, values, still, torch.tensor([0]), pools)
    torch.testing.assert_close(pools[1][0], values[0].bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_the_operators_take_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(2, 8), torch.ones(8)
    expected = norm.rms_norm(x, weight, eps=0.1), gated.gated(x, x, activation="silu")
    for module in (norm.reference, gated.reference):
        monkeypatch.setattr(module, "rms_norm" if module is norm.reference else "gated", None)
    assert torch.equal(norm.rms_norm(x, weight, eps=0.1), expected[0])
    assert torch.equal(gated.gated(x, x, activation="silu"), expected[1])
    with pytest.raises(TypeError):  # what the kernel has no code for is the reference's
        gated.gated(x, x, activation="relu")
