"""Recordings of functions: done again on other numbers they give what the function gives, and what cannot be done again is refused."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actorllm.execution.recording import NotReplayable, places, record
from actorllm_kernels import gated, norm
from actorllm_kernels.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


def memory(num_bytes: int) -> Tensor:
    return torch.full((num_bytes,), 255, dtype=torch.uint8)  # NaNs, for who reads before it writes


def layers(x: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    """What decode steps are made of: kernels, views, sums, lookups, and a tensor that is written in place."""
    weight = torch.ones(x.shape[1])
    x = x + table[ids]
    for _ in range(3):
        normed = norm.rms_norm(x, weight, eps=1e-6)
        gate, up = torch.cat((normed, normed * 2), dim=1).chunk(2, dim=1)
        x = x + gated.gated(gate, up, activation="silu")
        x, normed = norm.add_rms_norm(x, normed, weight, eps=1e-6)
    table[ids] = x
    return norm.rms_norm(x + weight, weight, eps=1e-6)


@torch.inference_mode()
def test_a_replay_gives_what_the_function_gives_for_other_numbers() -> None:
    x, ids, table = torch.randn(3, 32), torch.tensor([4, 0, 2]), torch.randn(6, 32)
    untouched = table.clone()
    first, recording = record(lambda: layers(x, ids, table), memory)
    assert first.equal(layers(x, ids, untouched))
    for seed in range(3):
        x.copy_(torch.randn(3, 32, generator=torch.Generator().manual_seed(seed)))
        ids.copy_(torch.tensor([seed, 5, 3]))
        assert recording.run().equal(layers(x.clone(), ids.clone(), untouched))
        assert table.equal(untouched)


@torch.inference_mode()
def test_tensors_that_only_kernels_touch_share_little_memory() -> None:
    """A chain of ten norms needs the memory of two rows at a time."""
    x, weight, asked = torch.randn(1, 4096), torch.ones(4096), []

    def chain() -> Tensor:
        y = x
        for _ in range(10):
            y = norm.rms_norm(y, weight, eps=1e-6)
        return y

    def block(num_bytes: int) -> Tensor:
        asked.append(num_bytes)
        return memory(num_bytes)

    expected, recording = record(chain, block)
    assert recording.run().equal(expected)
    assert asked[0] < 2 * x.nbytes + 256


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x * x.sum().item(),
        lambda x: x * x.tolist()[0][0],
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * float(x[0, 0]),
        lambda x: x + torch.from_numpy(x.numpy()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x + torch.rand_like(x),
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 1]), dim=0),
    ],
)
@torch.inference_mode()
def test_what_differs_with_the_numbers_is_refused(look: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 8)
    with pytest.raises(NotReplayable):
        record(lambda: look(x), memory)


blocks = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 20), st.integers(0, 20)), max_size=30)


@settings(deadline=None)
@given(blocks)
def test_blocks_in_use_at_the_same_time_lie_apart(found: list[tuple[int, int, int]]) -> None:
    wanted = {index: (size, min(a, b), max(a, b)) for index, (size, a, b) in enumerate(found)}
    offsets, end = places(wanted)
    for name, (size, first, last) in wanted.items():
        assert offsets[name] % 64 == 0 and offsets[name] + size <= end
        for other, (other_size, other_first, other_last) in wanted.items():
            if other != name and first <= other_last and other_first <= last:
                assert offsets[name] + size <= offsets[other] or offsets[other] + other_size <= offsets[name]
