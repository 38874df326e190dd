"""The Triton kernels of norms and gated products against their references: interpreted, or on the GPU where there is one.

`KERNEL_CASES` is how many random shapes of each are compared (18 by default).
"""

import os
from random import Random

import pytest
import torch

from actorllm_kernels.gated import ACTIVATIONS
from actorllm_kernels.gated import reference as gated_reference
from actorllm_kernels.norm import reference as norm_reference

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels.gated import triton as gated_triton
from actorllm_kernels.norm import triton as norm_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SIZES = (1, 48, 64, 80, 96, 128, 256, 257, 576, 2048, 3000)
NUM_CASES = int(os.environ.get("KERNEL_CASES", "18"))


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def rows_of(rng: Random, num_rows: int, size: int, *, dtype: torch.dtype) -> torch.Tensor:
    """[rows, size]: by themselves, as a part of wider rows, or with gaps between values."""
    x = normal(num_rows, 2 * size + 3, seed=rng.randrange(10**6), dtype=dtype)
    return rng.choice((x[:, :size].contiguous(), x[:, 1 : size + 1], x[:, : 2 * size : 2]))


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.float(), expected.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_norms_equal_the_reference(seed):
    """Root mean squares and standard deviations, with every weight that there may be, after a sum and alone."""
    rng, dtype = Random(seed), DTYPES[seed % 3]
    num_rows, size, eps = rng.choice((0, 1, 2, 5, 17)), rng.choice((*SIZES, rng.randint(1, 3000))), rng.choice((1e-3, 1e-5))
    x, y = (rows_of(rng, num_rows, size, dtype=dtype) for _ in range(2))
    x += rng.choice((0, 5))
    if seed // 3 % 2:
        weight = normal(size, seed=seed, dtype=rng.choice((dtype, torch.float32)))
        close(norm_triton.rms_norm(x, weight, eps=eps), norm_reference.rms_norm(x, weight, eps=eps))
        total, normed = norm_triton.add_rms_norm(x, y, weight, eps=eps)
        close(normed, norm_reference.rms_norm(total, weight, eps=eps))
    else:
        weight, bias = (rng.choice((None, normal(size, seed=index, dtype=dtype))) for index in range(2))
        close(norm_triton.layer_norm(x, weight_D=weight, bias_D=bias, eps=eps), layer_norm(x, weight, bias, eps=eps))
        total, normed = norm_triton.add_layer_norm(x, y, weight_D=weight, bias_D=bias, eps=eps)
        close(normed, layer_norm(total, weight, bias, eps=eps))
    close(total, x + y)


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, *, eps: float) -> torch.Tensor:
    """The reference in float32: in few bits torch rounds on the way, too."""
    weight, bias = (None if each is None else each.float() for each in (weight, bias))
    return norm_reference.layer_norm(x.float(), weight_D=weight, bias_D=bias, eps=eps).to(x.dtype)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256, 576])
def test_norms_of_heads_alone(head_dim):
    x, weight = normal(5, 3, 2, head_dim, seed=1, dtype=torch.bfloat16)[:, :, 1], normal(head_dim, seed=2, dtype=torch.bfloat16)
    close(norm_triton.layer_norm(x, weight_D=weight, bias_D=None, eps=1e-5), layer_norm(x, weight, None, eps=1e-5))
    for each in (weight, weight.float()):
        close(norm_triton.rms_norm(x, each, eps=0.0), norm_reference.rms_norm(x, each, eps=0.0))


def test_sums_of_tokens_with_more_axes():
    x, y, weight = normal(2, 3, 4, 48, seed=1)[:, :, 1], normal(2, 3, 48, seed=2), normal(48, seed=3)
    both = norm_triton.add_rms_norm(x, y, weight, eps=1e-5), norm_reference.add_rms_norm(x, y, weight, eps=1e-5)
    layer_norms = [each.add_layer_norm(x, y, weight_D=weight, bias_D=weight, eps=1e-5) for each in (norm_triton, norm_reference)]
    for ours, theirs in (*zip(*both, strict=True), *zip(*layer_norms, strict=True)):
        close(ours, theirs)
    assert not gated_triton.suits(x) and gated_triton.suits(x[0])


def test_weights_with_gaps_are_refused():
    x, gaps = normal(2, 48, seed=1), normal(96, seed=2)[::2]
    for call in (
        lambda: norm_triton.rms_norm(x, gaps, eps=1e-5),
        lambda: norm_triton.add_rms_norm(x, x, gaps, eps=1e-5),
        lambda: norm_triton.layer_norm(x, weight_D=None, bias_D=gaps, eps=1e-5),
    ):
        with pytest.raises(ValueError, match="_D has strides"):
            call()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_no_number_stays_none(activation):
    gate, up = normal(2, 8, seed=1), normal(2, 8, seed=2)
    gate[0, 3] = up[1, 5] = torch.nan
    got, expected = (each.gated(gate, up, activation=activation).isnan() for each in (gated_triton, gated_reference))
    assert torch.equal(got, expected) and int(got.sum()) == 2


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_gated_products_equal_the_reference(seed):
    rng, dtype, activation = Random(seed), DTYPES[seed % 3], list(ACTIVATIONS)[seed // 3 % len(ACTIVATIONS)]
    num_rows, size = rng.choice((0, 1, 3, 9)), rng.choice((1, 48, 257, 1500, rng.randint(1, 3000)))
    gate, up = (rows_of(rng, num_rows, size, dtype=dtype) for _ in range(2))
    if rng.random() < 0.5:  # halves of one tensor
        gate, up = normal(num_rows, 2 * size, seed=seed, dtype=dtype).chunk(2, dim=-1)
    gate *= 4
    close(gated_triton.gated(gate, up, activation=activation), gated_reference.gated(gate, up, activation=activation))
