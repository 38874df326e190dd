"""The Triton kernel that rotates and stores against its references: interpreted, or on the GPU where there is one.

`KERNEL_CASES` is how many random shapes of heads, and of latents, are compared (20 and 10 by default).
"""

import os
from random import Random

import pytest
import torch

from actorllm_kernels.latent_attention import rotate_and_store_latent_reference
from actorllm_kernels.quantize import LARGEST, dequantize
from actorllm_kernels.rotary_store import Angles
from actorllm_kernels.rotary_store import reference as store_reference

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels.rotary_store import triton as store_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FORMS = (None, *LARGEST)
"""Of pools: as the heads, or one byte a value."""
HEAD_DIMS = (64, 80, 96, 128, 256, 16)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
NUM_CASES = int(os.environ.get("KERNEL_CASES", "20"))
NUM_LATENT_CASES = int(os.environ.get("KERNEL_CASES", "10"))
NUM_SLOTS = 19

Pools = tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def angles_of(rng: Random, num_tokens: int, rotary_dim: int, *, dtype: torch.dtype) -> Angles:
    angles, is_interleaved = normal(num_tokens, 1, rotary_dim // 2, seed=2) * 3, rng.random() < 0.5
    angles = angles.repeat_interleave(2, dim=-1) if is_interleaved else torch.cat((angles, angles), dim=-1)
    return Angles(angles.cos().to(dtype), angles.sin().to(dtype), is_interleaved)


def empty_pools(num_kv_heads: int, sizes: tuple[int, int], form: torch.dtype) -> Pools:
    """Pools for keys and values, and their factors."""
    k, v = (torch.zeros(NUM_SLOTS, num_kv_heads, size, device=DEVICE).to(form) for size in sizes)
    k_scales, v_scales = (torch.zeros(NUM_SLOTS, num_kv_heads, device=DEVICE) for _ in range(2))
    return (k, v), (k_scales, v_scales) if form in LARGEST else None


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_equals_the_reference(seed):
    """Heads that are rotated whole, in part and not at all, of queries, keys and values that lie in one tensor."""
    rng, dtype = Random(seed), DTYPES[seed % 3]
    head_dim, form = HEAD_DIMS[seed % 6], FORMS[seed // 3 % 3] or dtype
    num_kv_heads, num_tokens = rng.choice((1, 2, 5)), rng.choice((0, 1, 4, 9))
    num_heads, value_dim = num_kv_heads * rng.choice((1, 3, 8)), rng.choice((head_dim, head_dim, head_dim // 2))
    rotary_dim = rng.choice((0, head_dim, head_dim, head_dim // 2, 2 * rng.randint(1, head_dim // 2)))
    heads = normal(num_tokens, num_heads + 2 * num_kv_heads, head_dim, seed=seed, dtype=dtype)
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    k[2:3] = 0
    v = rng.choice((v, v.flip(1)))[..., :value_dim]
    angles = angles_of(rng, num_tokens, rotary_dim, dtype=dtype) if rotary_dim else None
    slots = torch.randperm(NUM_SLOTS, generator=torch.Generator().manual_seed(seed))[:num_tokens].to(DEVICE)
    ours, theirs = (empty_pools(num_kv_heads, (head_dim, value_dim), each) for each in (form, in_float32(form)))
    got = store_triton.rotate_and_store(q, k, v, angles, slots, *ours)
    assert got.dtype == dtype
    close(got, store_reference.rotate_and_store(*exact((q, k, v), angles), slots, *theirs))
    same_pools(ours, theirs)


@pytest.mark.parametrize("seed", range(NUM_LATENT_CASES))
def test_latents_equal_the_reference(seed):
    """A latent and its rotated key go into one slot; in one byte with a factor each, and not spread."""
    rng, dtype, form = Random(seed), DTYPES[seed % 3], FORMS[seed // 3 % 3]
    latent_size, rotated = rng.choice(((512, 64), (512, 64), (40, 6)))
    num_tokens, num_heads = rng.choice((0, 1, 5)), rng.choice((1, 3, 16))
    q = normal(num_tokens, num_heads, 24 + rotated, seed=seed, dtype=dtype)[:, :, 24:]
    latent, key = normal(num_tokens, latent_size + rotated, seed=seed + 1, dtype=dtype).split([latent_size, rotated], dim=1)
    key *= 40  # would leave nothing of the latent in one factor for both
    slots = torch.randperm(NUM_SLOTS, generator=torch.Generator().manual_seed(seed))[:num_tokens].to(DEVICE)
    ours, theirs = (
        torch.zeros(NUM_SLOTS, latent_size + rotated, device=DEVICE).to(each) for each in (form or dtype, form or torch.float32)
    )
    our_scales, their_scales = (torch.zeros(NUM_SLOTS, 2, device=DEVICE) if form else None for _ in range(2))
    angles = angles_of(rng, num_tokens, rotated, dtype=dtype)
    got = store_triton.rotate_and_store_latent(q, latent, key, angles, slots, ours, scales_N2=our_scales)
    close(got, rotate_and_store_latent_reference(*exact((q, latent, key), angles), slots, theirs, scales_N2=their_scales))
    same_pools(parts_of(ours, our_scales, latent_size), parts_of(theirs, their_scales, latent_size))


def parts_of(pool: torch.Tensor, scales: torch.Tensor | None, latent_size: int) -> Pools:
    return (pool[:, :latent_size], pool[:, latent_size:]), None if scales is None else (scales[:, 0], scales[:, 1])


def test_queries_that_nothing_is_done_with_are_given_back():
    q, k = normal(3, 4, 64, seed=1), normal(3, 2, 64, seed=2)
    pools, _ = empty_pools(2, (64, 64), torch.float32)
    assert store_triton.rotate_and_store(q, k, k, None, torch.tensor([4, 0, 7], device=DEVICE), pools) is q
    assert torch.equal(pools[0][[4, 0, 7]], k) and torch.equal(pools[1][[4, 0, 7]], k) and int((pools[0] != 0).any(2).any(1).sum()) == 3


def in_float32(form: torch.dtype) -> torch.dtype:
    return form if form in LARGEST else torch.float32


def exact(heads: tuple[torch.Tensor, ...], angles: Angles | None) -> tuple:
    """The same numbers in float32: in few bits the reference rounds on the way, too."""
    exact_angles = None if angles is None else Angles(angles.cos_T1R.float(), angles.sin_T1R.float(), angles.is_interleaved)
    return *(each.float() for each in heads), exact_angles


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    size = max(expected.float().abs().amax().item(), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(got.float(), expected.float(), atol=TOLERANCE[got.dtype] * size, rtol=0)


def same_pools(got: Pools, expected: Pools) -> None:
    (pools, scales), (their_pools, their_scales) = got, expected
    for index in range(2):
        if scales is None or their_scales is None:
            close(pools[index], their_pools[index])
        else:
            same_quantized((pools[index], scales[index]), (their_pools[index], their_scales[index]))


def same_quantized(got: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Nearly all bytes are the same; where a sum was rounded otherwise, they are neighbours."""
    torch.testing.assert_close(got[1], expected[1], rtol=1e-5, atol=1e-6)
    step = expected[1].unsqueeze(-1) * (1.05 if got[0].dtype == torch.int8 else 34.0)
    assert ((dequantize(*got) - dequantize(*expected)).abs() <= step + 1e-6).all()
    assert (got[0].view(torch.uint8) == expected[0].view(torch.uint8)).float().mean() > 0.99


def test_slots_with_gaps_are_refused():
    x, ones, pools = normal(2, 1, 8, seed=1), torch.ones(2, 1, 8, device=DEVICE), tuple(torch.zeros(2, 4, 1, 8, device=DEVICE))
    with pytest.raises(ValueError, match="slots_T has strides"):
        store_triton.rotate_and_store(x, x, x, Angles(ones, ones), torch.arange(4, device=DEVICE)[::2], pools)


def test_pools_without_their_factors_are_refused():
    x = normal(1, 1, 64, seed=1)
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


@pytest.mark.parametrize("spread", ["cos_T1R", "sin_T1R", "k_scales_NK", "v_scales_NK"])
def test_rows_with_gaps_are_refused(spread):
    heads = normal(3, 6, 64, seed=0).split([2, 2, 2], dim=1)
    pools, scales = empty_pools(2, (64, 64), torch.int8)
    given = {"cos_T1R": normal(3, 1, 64, seed=1), "sin_T1R": normal(3, 1, 64, seed=2)}
    given |= dict(zip(("k_scales_NK", "v_scales_NK"), scales, strict=True))
    given[spread] = given[spread].repeat_interleave(2, dim=-1)[..., ::2]
    cos, sin, *scales = given.values()
    with pytest.raises(ValueError, match=f"{spread} has strides"):
        store_triton.rotate_and_store(*heads, Angles(cos, sin), torch.arange(3, device=DEVICE), pools, tuple(scales))
