"""The Triton kernels around attention against their references: interpreted, or on the GPU where there is one."""

import itertools
import os
from random import Random

import pytest
import torch

from actorllm_kernels.gated import ACTIVATIONS
from actorllm_kernels.gated import reference as gated_reference
from actorllm_kernels.norm import reference as norm_reference
from actorllm_kernels.quantize import LARGEST, dequantize
from actorllm_kernels.rotary_store import Angles
from actorllm_kernels.rotary_store import reference as store_reference

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels.gated import triton as gated_triton
from actorllm_kernels.norm import triton as norm_triton
from actorllm_kernels.rotary_store import triton as store_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SIZES = (1, 48, 257, 2048)
NUM_CASES = int(os.environ.get("KERNEL_CASES", "5"))
"""Random shapes of heads that are rotated and stored."""


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.float(), expected.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "size"), list(itertools.product(DTYPES, SIZES)))
def test_sum_and_rms_norm(dtype, size):
    x, residual, weight = (
        random(3, size, seed=1, dtype=dtype),
        random(3, size, seed=2, dtype=dtype),
        random(size, seed=3, dtype=dtype),
    )
    got = norm_triton.add_rms_norm(x, residual, weight, eps=1e-3)
    for one, other in zip(got, norm_reference.add_rms_norm(x, residual, weight, eps=1e-3), strict=True):
        close(one, other)


@pytest.mark.parametrize(("has_weight", "has_bias"), list(itertools.product((False, True), repeat=2)))
def test_sum_and_layer_norm(has_weight, has_bias):
    x, residual = random(4, 80, seed=1, dtype=torch.float16) + 5, random(4, 80, seed=2, dtype=torch.float16)
    weight, bias = (random(80, seed=seed, dtype=torch.float16) if has else None for seed, has in ((3, has_weight), (4, has_bias)))
    got = norm_triton.add_layer_norm(x, residual, weight_D=weight, bias_D=bias, eps=1e-5)
    expected = norm_reference.add_layer_norm(x, residual, weight_D=weight, bias_D=bias, eps=1e-5)
    for one, other in zip(got, expected, strict=True):
        close(one, other)


def test_layer_norm_of_heads_alone():
    x, weight = random(5, 3, 2, 64, seed=1, dtype=torch.bfloat16)[:, :, 1], random(64, seed=2, dtype=torch.bfloat16)
    got = norm_triton.layer_norm(x, weight_D=weight, bias_D=None, eps=1e-5)
    close(got, norm_reference.layer_norm(x, weight_D=weight, bias_D=None, eps=1e-5))


def test_norm_of_heads_with_a_float32_weight():
    x, weight = random(5, 3, 2, 64, seed=1, dtype=torch.bfloat16)[:, :, 1], random(64, seed=2)
    close(norm_triton.rms_norm(x, weight, eps=0.0), norm_reference.rms_norm(x, weight, eps=0.0))


@pytest.mark.parametrize(("activation", "dtype"), list(itertools.product(ACTIVATIONS, DTYPES)))
def test_gated_halves_of_one_tensor(activation, dtype):
    gate, up = random(3, 2 * 1500, seed=1, dtype=dtype).mul(4).chunk(2, dim=-1)
    close(gated_triton.gated(gate, up, activation=activation), gated_reference.gated(gate, up, activation=activation))


SHAPES = ((4, 2, 64, 64), (6, 1, 80, 32), (3, 3, 96, 96), (17, 1, 16, 4))
"""Query heads, key/value heads, head_dim, rotated size."""


def empty_pools(num_kv_heads: int, sizes: tuple[int, int], form: torch.dtype) -> tuple[tuple, tuple | None]:
    """Pools of 9 slots for keys and values, and their factors."""
    pools = tuple(torch.zeros(9, num_kv_heads, size, device=DEVICE).to(form) for size in sizes)
    return pools, tuple(torch.zeros(9, num_kv_heads, device=DEVICE) for _ in range(2)) if form in LARGEST else None


@pytest.mark.parametrize(
    ("shape", "is_interleaved", "form"),
    [*itertools.product(SHAPES, (False, True), (torch.float16,)), *itertools.product(SHAPES[:3], (False, True), LARGEST)],
)
def test_rotate_and_store(shape, is_interleaved, form):
    check_rotate_and_store(shape, is_interleaved, form, num_tokens=5)


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_rotate_and_store_any_heads(seed):
    rng = Random(seed)
    head_dim, form = (64, 80, 96, 128, 256)[seed % 5], (torch.float16, *LARGEST)[seed % 3]
    num_kv_heads = rng.choice((1, 2, 5))
    rotary_dim = rng.choice((head_dim, head_dim // 2, 2 * rng.randint(1, head_dim // 2)))
    shape = num_kv_heads * rng.choice((1, 3, 8)), num_kv_heads, head_dim, rotary_dim
    check_rotate_and_store(shape, rng.random() < 0.5, form, num_tokens=rng.choice((1, 4, 9)))


def check_rotate_and_store(shape: tuple[int, int, int, int], is_interleaved: bool, form: torch.dtype, *, num_tokens: int) -> None:
    num_heads, num_kv_heads, head_dim, rotary_dim = shape
    q, k, v = random(num_tokens, num_heads + 2 * num_kv_heads, head_dim, seed=1, dtype=torch.float16).split(
        [num_heads, num_kv_heads, num_kv_heads], dim=1
    )
    if num_tokens > 3:
        k[3] = 0
    v = v[..., : head_dim // 2] if head_dim == 96 else v
    angles = random(num_tokens, 1, rotary_dim // 2, seed=2).mul(3)
    angles = angles.repeat_interleave(2, dim=-1) if is_interleaved else torch.cat((angles, angles), dim=-1)
    tables = Angles(angles.cos().half(), angles.sin().half(), is_interleaved)
    slots = torch.tensor([7, 2, 8, 0, 3, 1, 6, 4, 5], device=DEVICE)[:num_tokens]
    sizes = head_dim, v.shape[2]
    (ours, our_scales), (theirs, their_scales) = (empty_pools(num_kv_heads, sizes, form) for _ in range(2))
    got = store_triton.rotate_and_store(q, k, v, tables, slots, ours, our_scales)
    close(got, store_reference.rotate_and_store(q, k, v, tables, slots, theirs, their_scales))
    for index in range(2):
        if our_scales is None or their_scales is None:
            close(ours[index], theirs[index])
        else:
            same_quantized((ours[index], our_scales[index]), (theirs[index], their_scales[index]))


def same_quantized(got: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Nearly all bytes are the same; where a sum was rounded otherwise, they are neighbours."""
    torch.testing.assert_close(got[1], expected[1], rtol=2e-3, atol=1e-6)
    step = expected[1].unsqueeze(-1) * (1.05 if got[0].dtype == torch.int8 else 34.0)
    assert ((dequantize(*got) - dequantize(*expected)).abs() <= step + 1e-6).all()
    assert (got[0].view(torch.uint8) == expected[0].view(torch.uint8)).float().mean() > 0.97


def test_slots_with_gaps_are_refused():
    x, ones, pools = random(2, 1, 8, seed=1), torch.ones(2, 1, 8, device=DEVICE), tuple(torch.zeros(2, 4, 1, 8, device=DEVICE))
    with pytest.raises(ValueError, match="slots_T has strides"):
        store_triton.rotate_and_store(x, x, x, Angles(ones, ones), torch.arange(4, device=DEVICE)[::2], pools)


def test_pools_without_their_factors_are_refused():
    x = random(1, 1, 64, seed=1)
    pools, _ = empty_pools(1, (64, 64), torch.int8)
    with pytest.raises(ValueError, match="factor"):
        store_triton.rotate_and_store(x, x, x, Angles(x, x), torch.zeros(1, dtype=torch.int64), pools)


def test_every_byte_of_fp8_is_coded_as_torch_does():
    every = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(torch.float8_e4m3fn)
    v = torch.where(every.float().isnan(), 0, every.float()).view(1, 1, 256)  # the largest size is the format's: factor 1
    pools = tuple(torch.zeros(1, 1, 256, device=DEVICE).to(torch.float8_e4m3fn) for _ in range(2))
    factors = tuple(torch.zeros(1, 1, device=DEVICE) for _ in range(2))
    ones = torch.ones(1, 1, 256, device=DEVICE)
    slots = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    store_triton.rotate_and_store(v, v, v, Angles(ones, torch.zeros_like(ones)), slots, pools, factors)
    assert torch.equal(pools[1].float(), v)
