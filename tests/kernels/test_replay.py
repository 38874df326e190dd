"""Noted calls of the C++ kernels, repeated: on the same memory with other numbers, and on other memory."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actorllm_kernels import gated, norm
from actorllm_kernels.native import SOURCES, library, noting
from actorllm_kernels.replay import Call, Replay
from actorllm_kernels.twins import twin

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


def noted(function) -> list[Call]:
    calls: list[Call] = []
    with noting(lambda kernel, arguments: calls.append(Call(kernel, arguments))):
        function()
    return calls


def test_every_kernel_can_be_replayed() -> None:
    """An entry point without its second one would fail in a served step, and not before."""
    text = "".join(path.read_text() for path in SOURCES.glob("*.cpp"))
    kernels = set(re.findall(r'extern "C" void (actorllm_\w+)\(', text)) - {"actorllm_replay"}
    assert kernels == set(re.findall(r"^REPLAYABLE\((\w+)\)", text, re.MULTILINE)) and len(kernels) > 5


def test_calls_are_repeated_in_order_with_all_kinds_of_arguments() -> None:
    x, weight = torch.randn(3, 20), torch.rand(20)
    kept = []
    calls = noted(lambda: kept.extend((y := norm.cpu.rms_norm(x, weight, eps=0.25), gated.cpu.gated(y, x, activation="silu"))))
    x.copy_(torch.randn(3, 20))
    Replay(calls).run()
    normed = norm.reference.rms_norm(x, weight, eps=0.25)
    torch.testing.assert_close(kept[0], normed)
    torch.testing.assert_close(kept[1], gated.reference.gated(normed, x, activation="silu"))


def test_a_call_is_moved_to_other_memory() -> None:
    x, weight, other = torch.randn(3, 20), torch.rand(20), torch.zeros(3, 20)
    kept = []
    [call] = noted(lambda: kept.append(norm.cpu.rms_norm(x, weight, eps=0.25)))
    assert set(call.pointers) == {x.data_ptr(), weight.data_ptr(), kept[0].data_ptr()}
    Replay([call.moved({kept[0].data_ptr(): other.data_ptr()})]).run()
    assert other.equal(kept[0])


def test_nobody_is_told_of_calls_outside() -> None:
    calls = noted(lambda: None)
    norm.cpu.rms_norm(torch.randn(1, 4), torch.rand(4), eps=1e-6)
    assert calls == []


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 70), st.booleans(), st.integers(0, 100))
def test_sums_are_the_same_to_the_last_bit(num_rows: int, size: int, is_row: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, size + 5, generator=generator)[:, 3 : 3 + size] * 1e3
    y = torch.randn(size, generator=generator) if is_row else torch.randn(num_rows, size + 1, generator=generator)[:, :size]
    out = torch.empty(num_rows, size)
    call = twin(torch.ops.aten.add.Tensor, (x, y), {}, (out,))
    assert call is not None
    Replay([call]).run()
    assert out.equal(x + y)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(2, 3), 1.0),
        (torch.zeros(2, 3), torch.zeros(2, 1)),
        (torch.zeros(3, 2).T, torch.zeros(2, 3)),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)),
        (torch.zeros(3), torch.zeros(3)),
    ],
)
def test_other_sums_are_left_to_torch(x: torch.Tensor, y: torch.Tensor | float) -> None:
    assert twin(torch.ops.aten.add.Tensor, (x, y), {}, (x + y,)) is None
