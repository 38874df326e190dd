"""A hand-held schedule: builds `Step` messages row by row, with slots handed out in an arbitrary order."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from actorllm.execution.runner import ResidentRunner, RunnerSizes
from actorllm.layers.shard import Shard
from actorllm.messages import RowOpen, RowSampling, Step, pack
from actorllm_echo import EchoConfig, EchoForCausalLM

CPU = torch.device("cpu")


def row_sampling(**changes) -> RowSampling:
    """Greedy, unless changed."""
    values = dict(
        temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0,
        frequency_penalty=0.0, logit_bias={}, seed=0, logprobs=None, min_tokens=0, banned_ids=(),
    )  # fmt: skip
    return RowSampling(**(values | changes))


@dataclass
class StepBuilder:
    """Collects one step after another; slots of all groups are drawn from one shuffled list."""

    num_slots: int = 512
    num_groups: int = 1
    epoch: int = 1
    number: int = 0
    lens: dict[int, int] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)
    slots: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free = random.Random(0).sample(range(self.num_slots), self.num_slots)
        self.begin()

    def begin(self) -> None:
        self.closed: list[int] = []
        self.opened: list[RowOpen] = []
        self.entries: list[tuple[int, list[int], int]] = []
        self.samples: list[tuple[int, int, int]] = []
        self.prompts: list[tuple[int, int, bytes]] = []

    def open(
        self, row: int, *, output_ids: Sequence[int] = (), prompt_ids: Sequence[int] = (), like: int | None = None, **sampling
    ) -> "StepBuilder":
        """A new sequence in `row`, which shares all of `like`'s tokens, if given."""
        shared = self.slots[like] if like is not None else []
        self.lens[row], self.outputs[row], self.slots[row] = (len(shared), len(output_ids), list(shared))
        groups = range(self.num_groups)
        self.opened.append(
            RowOpen(
                row,
                row_sampling(**sampling),
                pack(prompt_ids),
                pack(output_ids),
                tuple(0 for _ in groups),
                tuple(pack(shared) for _ in groups),
            )
        )
        return self

    def close(self, row: int) -> "StepBuilder":
        self.closed.append(row)
        return self

    def feed(
        self, row: int, ids: Sequence[int], *, to: Sequence[int] | None = (), prompt: tuple[int, list[int]] | None = None
    ) -> "StepBuilder":
        """Tokens for `row`, after the last of which the rows `to` are sampled."""
        start = self.lens[row]
        self.lens[row] += len(ids)
        taken = [self.free.pop() for _ in ids]
        self.slots[row] += taken
        if prompt is not None:
            self.prompts.append((len(self.entries), prompt[0], pack(prompt[1])))
        self.entries.append((row, list(ids), start))
        last = sum(len(ids) for _, ids, _ in self.entries) - 1
        for target in to or ():
            position = self.outputs.get(target, 0)
            self.samples.append((last, target, position))
            self.outputs[target] = position + 1
        return self

    def decode(self, *rows: int) -> "StepBuilder":
        """The last sampled token of each row, which the device knows."""
        for row in rows:
            self.feed(row, [-1], to=[row])
        return self

    def step(self) -> Step:
        """The step so far; the next one begins."""
        self.number += 1
        written = [slot for row, ids, start in self.entries for slot in self.slots[row][start : start + len(ids)]]
        step = Step(
            epoch=self.epoch,
            number=self.number,
            closed=tuple(self.closed),
            opened=tuple(self.opened),
            rows=pack(row for row, _, _ in self.entries),
            query_lens=pack(len(ids) for _, ids, _ in self.entries),
            seq_lens=pack(start + len(ids) for _, ids, start in self.entries),
            token_ids=pack(token for _, ids, _ in self.entries for token in ids),
            positions=pack(start + i for _, ids, start in self.entries for i in range(len(ids))),
            write_slots=(pack(written),) * self.num_groups,
            sample_rows=pack(token for token, _, _ in self.samples),
            sample_to=pack(row for _, row, _ in self.samples),
            sample_positions=pack(position for _, _, position in self.samples),
            prompt_logprobs=tuple(self.prompts),
        )
        self.begin()
        return step


@pytest.fixture
def new_steps() -> Callable[..., StepBuilder]:
    return StepBuilder


@pytest.fixture
def sampling() -> Callable[..., RowSampling]:
    return row_sampling


@pytest.fixture
def new_echo() -> Callable[..., ResidentRunner]:
    """Builds a runner over the echo model with a vocabulary of 32: the next token is the last one plus 1."""

    def build(**changes) -> ResidentRunner:
        model = EchoForCausalLM(EchoConfig(vocab_size=32, context_len=64, num_layers=2), Shard())
        sizes = RunnerSizes(num_slots=(512,), max_running=8, context=64)
        return ResidentRunner(model, sizes, **({"dtype": torch.float32, "device": CPU} | changes))

    return build
