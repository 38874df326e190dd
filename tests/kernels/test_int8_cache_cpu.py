"""Keys and values in int8: the C++ kernels that store and read them against the references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm_kernels import rotary_store
from actorllm_kernels.attention import RaggedKeys, cpu, reference
from actorllm_kernels.latent_attention import attend_latent, attend_latent_reference, store_latent
from actorllm_kernels.native import library
from actorllm_kernels.quantize import dequantize, dequantize_parts, quantize
from actorllm_kernels.rotary_store import Angles
from tests.kernels.ragged_pool import Pool
from tests.kernels.test_attention_cpu import EXTRAS, close, lens

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")

NUM_SLOTS = 600
EXTREMES = (0.0, 1e-45, 1e-38, 1e-20, 3e37, torch.inf, -torch.inf, torch.nan)


def int8_pool(pool: Pool) -> dict[str, torch.Tensor]:
    """Makes the pool's keys and values int8, inside of wider tensors at odd addresses; gives their factors, of which unused ones are NaN."""
    scales = []
    for name in ("k", "v"):
        values, factors = quantize(getattr(pool, name), torch.int8)
        wide = torch.zeros(*values.shape[:2], values.shape[2] + 3, dtype=torch.int8)
        wide[:, :, 1:-2] = values
        setattr(pool, name, wide[:, :, 1:-2])
        scales.append(factors)
    return dict(zip(("k_scales_NK", "v_scales_NK"), scales, strict=True))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(lens, min_size=1, max_size=4),
    st.sampled_from([1, 2, 4, 12]),
    st.sampled_from([8, 10, 64, 80, 128]),
    st.sampled_from([None, 1, 5, 128]),
    st.fixed_dictionaries({}, optional=EXTRAS),
)
def test_attention_equals_the_reference(rows, num_kv_heads, head_dim, window, extras):
    pool = Pool(rows, 12, num_kv_heads, head_dim=head_dim)
    scales = int8_pool(pool)
    got = pool.attend(cpu, window=window, **scales, **extras)
    assert got.isfinite().all()
    close(got, pool.attend(reference, window=window, **scales, **extras))


@pytest.mark.parametrize("rows", [[(1, 5000)], [(2, 3000), (1, 3)], [(130, 9000)]])
def test_long_rows_in_parts_equal_the_reference(rows):
    pool = Pool(rows, 2, 1, head_dim=16)
    scales = int8_pool(pool)
    close(pool.attend(cpu, scale=0.9, **scales), pool.attend(reference, scale=0.9, **scales))


def test_a_token_that_is_not_finite_is_seen_by_its_readers_alone():
    pool = Pool([(1, 40), (1, 30), (1, 20)], 4, 2, head_dim=24)
    pool.k[pool.table[0, 7]], pool.v[pool.table[1, 5], 1] = torch.nan, torch.inf
    scales = int8_pool(pool)
    is_nan = pool.attend(cpu, **scales).isnan()
    assert is_nan[0].all() and is_nan[1, 2:].all() and not is_nan[1, :2].any() and not is_nan[2].any()
    assert torch.equal(is_nan, pool.attend(reference, **scales).isnan())


def test_no_rows_and_pools_without_factors():
    empty = RaggedKeys((), torch.zeros(1, 4, dtype=torch.int32))
    k = torch.zeros(4, 2, 8, dtype=torch.int8)
    factors = torch.ones(4, 2)
    assert cpu.attend(torch.zeros(0, 4, 8), k, k, empty, scale=1.0, k_scales_NK=factors, v_scales_NK=factors).shape == (0, 4, 8)
    with pytest.raises(ValueError, match="factor"):
        cpu.attend(torch.zeros(0, 4, 8), k, k, empty, scale=1.0)


def extreme(num_rows: int, num_heads: int, size: int, *, seed: int) -> torch.Tensor:
    """[rows, heads, size] at an odd address; some heads are of extreme sizes, or have one such value."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_heads, size + 3, generator=generator)[:, :, 1 : size + 1]
    for row, value in zip(range(0, num_rows, 2), EXTREMES, strict=False):
        if value < 1:
            x[row] *= value
        else:
            x[row, 0, size // 2] = value
    return x


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([0, 1, 2, 16, 300]),
    st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.sampled_from([(8, 8, 8), (10, 4, 6), (64, 64, 64), (80, 32, 80), (128, 128, 96), (256, 256, 8)]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_rotating_and_storing_equals_the_reference(num_rows, heads, dims, is_interleaved, seed):
    (num_heads, num_kv_heads), (head_dim, rotary_dim, value_dim) = heads, dims
    q = torch.randn(num_rows, num_heads, head_dim)
    k, v = extreme(num_rows, num_kv_heads, head_dim, seed=seed), extreme(num_rows, num_kv_heads, value_dim, seed=seed + 1)
    angles = Angles(*torch.randn(2, num_rows, 1, rotary_dim), is_interleaved)
    slots = torch.randperm(NUM_SLOTS)[:num_rows]
    stored = []
    for operator in (rotary_store.cpu, rotary_store.reference):
        pools = tuple(torch.zeros(NUM_SLOTS, num_kv_heads, size, dtype=torch.int8) for size in (head_dim, value_dim))
        scales = tuple(torch.zeros(NUM_SLOTS, num_kv_heads) for _ in range(2))
        assert rotary_store.cpu.suits(q, k, v, angles, pools, scales)
        stored.append((operator.rotate_and_store(q, k, v, angles, slots, pools, scales), *pools, *scales))
    (q_got, *got), (q_expected, *expected) = stored
    close(q_got, q_expected)
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[3], expected[3], atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(got[2], expected[2], atol=0, rtol=1e-5, equal_nan=True)
    assert ((got[0].int() - expected[0].int()).abs() <= 1).all()  # a rotated value may be rounded otherwise


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([0, 1, 16, 300]), st.sampled_from([1, 3]), st.sampled_from([1, 7, 16, 80, 129]), st.integers(0, 1000))
def test_storing_equals_the_reference(num_rows, num_heads, size, seed):
    x, slots = extreme(num_rows, num_heads, size, seed=seed), torch.randperm(NUM_SLOTS)[:num_rows]
    stored = []
    for operator in (rotary_store.store, rotary_store.reference.store):
        pool, scales = torch.zeros(NUM_SLOTS, num_heads, size, dtype=torch.int8), torch.zeros(NUM_SLOTS, num_heads)
        operator(x, slots, pool, scales)
        stored.append((pool, scales))
    assert torch.equal(stored[0][0], stored[1][0])
    torch.testing.assert_close(stored[0][1], stored[1][1], atol=0, rtol=0, equal_nan=True)


def test_the_kernel_is_what_stores(monkeypatch):
    monkeypatch.setattr(rotary_store.reference, "store", None)
    pool, scales = torch.zeros(4, 1, 8, dtype=torch.int8), torch.zeros(4, 1)
    rotary_store.store(torch.arange(8.0).view(1, 1, 8), torch.tensor([2]), pool, scales)
    assert pool[2, 0].tolist() == [0, 18, 36, 54, 73, 91, 109, 127]


@settings(deadline=None, max_examples=30)
@given(st.lists(lens, min_size=1, max_size=3), st.sampled_from([1, 3, 16]), st.sampled_from([(6, 4), (32, 16), (64, 10)]))
def test_latents_equal_the_reference(rows, num_heads, sizes):
    latent, rotated = sizes
    pool = Pool(rows, num_heads, 1, head_dim=latent + rotated)
    values, scales = torch.zeros(len(pool.k), latent + rotated, dtype=torch.int8), torch.full((len(pool.k), 2), torch.nan)
    taken = torch.cat([pool.table[row, :seq_len] for row, _, _, seq_len in pool.spans]).long()
    tokens = torch.cat([k for _, k, _ in pool.rows]).squeeze(1)
    tokens[:, latent:] *= 50  # would leave nothing of the latent in one scale for both
    store_latent(tokens, taken, values, latent_size=latent, scales_N2=scales)
    back = dequantize_parts(values[taken], scales[taken], latent)
    assert ((back - tokens).abs()[:, :latent] <= scales[taken, :1] * 0.5001).all()
    keys = pool.keys()
    q = torch.cat([q for q, _, _ in pool.rows])
    arguments = {"latent_size": latent, "scale": 0.05, "scales_N2": scales}
    close(attend_latent(q, values, keys, **arguments), attend_latent_reference(q, values, keys, **arguments))


@pytest.mark.parametrize("is_interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(8, 8), (128, 128), (80, 32), (96, 96), (10, 6), (7, 0)])
def test_spreading_keeps_products_and_levels_channels(head_dim, rotary_dim, is_interleaved):
    angles = Angles(*torch.randn(2, 3, 1, rotary_dim), is_interleaved) if rotary_dim else None
    q, k = torch.randn(2, 3, 4, head_dim, dtype=torch.float32)
    k[:, :, head_dim // 3] += 40
    turned_q, turned_k = rotary_store.reference.spread(q, angles), rotary_store.reference.spread(k, angles)
    close((turned_q * turned_k).sum(dim=-1), (q * k).sum(dim=-1))
    close(turned_k.norm(dim=-1), k.norm(dim=-1))
    if head_dim in (8, 128):
        assert turned_k.abs().amax() < 0.6 * k.abs().amax()


def test_blocks_of_a_power_of_two_are_transformed_by_hadamards_matrix():
    matrix = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    x = torch.randn(2, 12)
    close(rotary_store.reference.walsh(x), (x.view(2, 3, 4) @ matrix).flatten(1))


def test_without_angles_keys_are_spread_by_the_kernel_as_by_the_reference(monkeypatch):
    q, k, v = torch.randn(5, 4, 24), torch.randn(5, 2, 24), torch.randn(5, 2, 16)
    slots, stored = torch.tensor([4, 0, 2, 5, 1]), []
    for operator in (rotary_store.reference, rotary_store):
        pools = torch.zeros(6, 2, 24, dtype=torch.int8), torch.zeros(6, 2, 16, dtype=torch.int8)
        scales = torch.zeros(6, 2), torch.zeros(6, 2)
        stored.append((operator.rotate_and_store(q, k, v, None, slots, pools, scales), dequantize(pools[0], scales[0]), pools[1]))
        monkeypatch.setattr(rotary_store.reference, "rotate_and_store", None)
    (q_expected, k_expected, v_expected), (q_got, k_got, v_got) = stored
    close(q_got, q_expected)
    assert torch.equal(v_got, v_expected) and ((k_got - k_expected).abs() <= 0.05).all()


def test_what_is_read_back_is_within_half_a_step():
    x = torch.randn(5, 3, 64)
    values, scales = quantize(x, torch.int8)
    assert ((dequantize(values, scales) - x).abs() <= scales.unsqueeze(-1) * 0.5001).all()
    assert values.abs().amax(dim=-1).eq(127).all()
