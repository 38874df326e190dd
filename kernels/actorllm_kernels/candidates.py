"""The ways to cut each kernel that are tried when it is tuned: data, beside what is shipped. Knows no launch."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from actorllm_kernels.configurations import Configuration, Key, configuration


@dataclass(frozen=True)
class Choices:
    """Every combination of warps, stages, sizes of tiles (by their names) and registers is a candidate."""

    num_warps: Sequence[int]
    num_stages: Sequence[int]
    blocks: Mapping[str, Sequence[int]]
    max_registers: Sequence[int | None] = (None,)

    def __iter__(self) -> Iterator[Configuration]:
        options = itertools.product(self.num_warps, self.num_stages, self.max_registers)
        for (warps, stages, registers), sizes in itertools.product(options, itertools.product(*self.blocks.values())):
            yield Configuration(tuple(sorted(zip(self.blocks, sizes, strict=True))), warps, stages, registers)


REGISTERS = (None, 168, 255)
"""Of a thread: as the assembler likes, for three programs of four warps on a processor, and as many as it takes not to spill."""
LONG_HEAD = 256
OF_LONG_HEADS = Choices((4, 8), (2, 3), {"m": (16, 32), "n": (16, 32, 64)}, REGISTERS)
"""Larger tiles of heads of so many values, or of latents, fit in no shared memory."""
COLUMNS = (512, 1024, 2048, 4096)
EXPERTS = {"n": (64, 128), "c": (64, 128)}
CHOICES = {
    "attend_decode": Choices((4, 8), (2, 3, 4, 5), {"m": (64,), "n": (32, 64, 128)}, REGISTERS),
    "attend_prefill": Choices((4, 8), (2, 3, 4, 5), {"m": (64, 128), "n": (32, 64, 128)}),
    "linear_weight_only": Choices((4, 8), (3, 4, 5), {"n": (32, 64, 128), "k": (32, 64, 128, 256)}),
    "expand": Choices((2, 4, 8), (1,), {"n": COLUMNS}),
    "linear_fp8": Choices((4, 8), (3, 4), {"n": (64, 128), "k": (128, 256)}),
    "experts_gate_up": Choices((4, 8), (2, 3, 4), EXPERTS),
    "experts_down": Choices((4, 8), (2, 3, 4), EXPERTS),
    "norm": Choices((2, 4, 8, 16), (1,), {}),
    "gated": Choices((2, 4, 8), (1,), {"n": COLUMNS}),
    "embedding": Choices((2, 4, 8), (1,), {"n": COLUMNS}),
    "rotary_store": Choices((2, 4, 8), (1,), {"values": COLUMNS}),
    "sampling": Choices((4, 8), (1, 3), {"part": (2048, 4096, 8192), "lanes": (512, 1024)}),
}
"""By kernel. A block of experts' rows is as high as their shape says: see `candidates`."""


def candidates(key: Key) -> Iterator[Configuration]:
    """How a kernel is cut for this key so far, then the others. Raises `KeyError` for an unknown kernel."""
    known, choices = configuration(key), CHOICES[key.kernel]
    if key.kernel.startswith("experts_"):
        choices = Choices(choices.num_warps, choices.num_stages, {"m": (dict(key.shape)["rows"],), **choices.blocks})
    elif dict(key.shape).get("head_dim", 0) >= LONG_HEAD:
        choices = OF_LONG_HEADS
    yield known
    yield from (each for each in choices if each != known)
