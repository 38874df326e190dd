"""A step's forward pass and its sampling apart: masks that depend on tokens of steps whose forward is long launched."""

import itertools
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from actorllm.execution.runner import ResidentRunner
from actorllm.messages import Step, unpack

VOCAB_SIZE = 32
DIGITS = range(10, 20)
NUM_STEPS = 24


@dataclass
class Digits:
    """Allows digits, none twice in a row."""

    ids: list[int] = field(default_factory=list)

    def mask(self) -> Tensor:
        mask_V = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
        mask_V[list(DIGITS)] = True
        mask_V[self.ids[-1:]] = False
        return mask_V


def planned(new_steps, **sampling) -> list[Step]:
    """Row 0 is to be masked, row 3 is its free neighbour."""
    steps = new_steps()
    steps.open(0, temperature=1.0, seed=5, **sampling).open(3, temperature=1.0, seed=6)
    return [steps.feed(0, [3, 4], to=[0]).feed(3, [20], to=[3]).step(), *(steps.decode(0, 3).step() for _ in range(NUM_STEPS))]


def run_masked(runner: ResidentRunner, steps: list[Step], *, depth: int) -> list[tuple[int, ...]]:
    """At depth 2 each forward is launched before the last step's tokens are read, on the device's own."""
    rule, sampled, last = Digits(), [], None

    def read() -> None:
        sampled.append(tuple(unpack(last.read().sampled)))
        rule.ids.append(sampled[-1][0])

    for step in steps:
        if depth == 1 and last is not None:
            read()
        forwarded = runner.forward(step)
        if depth == 2 and last is not None:
            read()
        last = runner.sample(forwarded, allowed={0: rule.mask(), 7: rule.mask()})
    read()
    return sampled


@pytest.mark.parametrize("depth", [1, 2])
def test_a_mask_can_depend_on_the_token_before(new_echo, new_steps, depth: int) -> None:
    sampled = run_masked(new_echo(), planned(new_steps), depth=depth)
    masked, free = zip(*sampled, strict=True)
    assert set(masked) <= set(DIGITS)
    assert all(one != next_one for one, next_one in itertools.pairwise(masked))
    assert len(set(masked)) > 3
    plain = new_echo()
    assert list(free) == [unpack(plain.run(step).sampled)[1] for step in planned(new_steps)]


def test_depth_changes_no_masked_token(new_echo, new_steps) -> None:
    runs = [run_masked(new_echo(), planned(new_steps), depth=depth) for depth in (1, 2)]
    assert runs[0] == runs[1]


def test_a_mask_is_a_bias_that_nothing_outweighs(new_echo, new_steps) -> None:
    mask_V = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    mask_V[list(DIGITS)] = True
    masked, biased = new_echo(), new_echo()
    bias = {token_id: -100.0 for token_id in range(VOCAB_SIZE) if token_id not in DIGITS}
    for step, plain in zip(planned(new_steps), planned(new_steps, logit_bias=bias), strict=True):
        found = masked.sample(masked.forward(step), allowed={0: mask_V}).read()
        assert found.sampled == biased.run(plain).sampled


def test_a_row_that_is_allowed_nothing_fails_alone(new_echo, new_steps) -> None:
    runner = new_echo()
    nothing = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    done = runner.sample(runner.forward(planned(new_steps)[0]), allowed={0: nothing}).read()
    assert list(unpack(done.sampled)) == [-1, 21]
