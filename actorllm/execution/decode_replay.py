"""Decode steps on a CPU, recorded once for each number of rows and then replayed.

A step with one token a row does the same work on other numbers each time; of a small model it is as much Python as arithmetic.
What is recorded goes from the numbers of the step to the logits. Before it is trusted, the first replay is compared with the same step
computed without it. A model that cannot be replayed is computed as ever. Knows no sampling.

Legend: B rows, which are also tokens and samples, V vocabulary.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from actorllm.execution.machine import give_back_freed_memory
from actorllm.execution.recording import NotReplayable, Recording, record
from actorllm.execution.step import StepParts
from actorllm.execution.upload import Upload
from actorllm_kernels.attention import Span
from actorllm_kernels.native import library

logger = logging.getLogger(__name__)

MOST_ROWS = 32
"""Beyond, the Python of a step takes little beside its arithmetic."""

MOST_SAMPLE_NUMBERS = 3
"""That a row's sample brings with it: its device row, its position, and its place if it has logprobs."""

MOST_BYTES = 64 * 2**20
"""What all recordings of a model may hold."""


class _Unknown:
    """A number that differs from step to step."""

    def __eq__(self, other: object) -> bool:
        raise NotReplayable("the model looks at the rows' lengths")

    __hash__ = None  # pyright: ignore[reportAssignmentType]


@dataclass
class _Recorded:
    """A recording, the numbers that it reads, and whether a replay of it was compared."""

    numbers: Tensor
    recording: Recording
    is_right: bool = False


class DecodeReplay:
    """The decode steps of one model on one rank. `compute(parts)` gives the logits [B, V] of a step that is sent; `num_replays` are
    the steps that were replayed in its place.

    Writing the same keys and values twice must change nothing, so it is not for models with recurrent states.
    """

    def __init__(self, compute: Callable[[StepParts], Tensor]) -> None:
        self._compute = compute
        self._recorded: dict[tuple[int, ...], _Recorded] = {}
        self._shared = torch.empty(0, dtype=torch.uint8)
        self._num_shared = 0
        self._is_possible = library() is not None
        self.num_replays = 0

    def logits(self, parts: StepParts, upload: Upload) -> Tensor:
        """Send a decode step and compute it; the result [B, V] is valid until the next one."""
        num_rows = len(parts.spans)
        key = num_rows, len(parts.step.positions), parts.has_unknown_ids
        recorded = self._recorded.get(key)
        if recorded is None and not self._can_record(num_rows):
            upload.send()
            return self._compute(parts)
        # The step's own numbers come first; how many others follow depends on what is sampled, and is not read in a replay.
        numbers = recorded.numbers if recorded else torch.empty(len(upload) + num_rows * MOST_SAMPLE_NUMBERS, dtype=torch.int64)
        upload.send(into=numbers)
        if recorded is None:
            return self._record(key, parts, numbers=numbers)
        if not recorded.is_right:
            return self._check(recorded, parts)
        self.num_replays += 1
        return recorded.recording.run()

    def _can_record(self, num_rows: int) -> bool:
        return self._is_possible and num_rows <= MOST_ROWS and self._num_bytes() <= MOST_BYTES

    def _record(self, key: tuple[int, ...], parts: StepParts, *, numbers: Tensor) -> Tensor:
        unknown = _Unknown()
        spans = tuple(Span(unknown, span.start, 1, unknown) for span in parts.spans)  # pyright: ignore[reportArgumentType]
        try:
            logits_BV, recording = record(lambda: self._compute(replace(parts, spans=spans)), self._block)
        except Exception as error:  # boundary: whatever a recording cannot do, the step itself can, or tells
            logger.debug("decode steps are not replayed: %s: %s", type(error).__name__, error)
            self._is_possible = False
            return self._compute(parts)
        give_back_freed_memory()  # all that the step computed was kept while it was recorded
        self._recorded[key] = _Recorded(numbers, recording)
        return logits_BV

    def _check(self, recorded: _Recorded, parts: StepParts) -> Tensor:
        logits_BV = self._compute(parts)
        recorded.is_right = torch.equal(recorded.recording.run(), logits_BV)
        if not recorded.is_right and logits_BV.isfinite().all():
            logger.warning("a replayed decode step differs from the step itself: steps are not replayed")
            self._is_possible = False
            self._recorded.clear()
        return logits_BV

    def _block(self, num_bytes: int) -> Tensor:
        """Memory for a recording, which all share, because they run one after another. What none has written to takes no memory."""
        self._num_shared = max(self._num_shared, num_bytes)
        if self._shared.nbytes < num_bytes:  # a recording keeps its own, should that be a smaller one
            self._shared = torch.empty(max(MOST_BYTES, num_bytes), dtype=torch.uint8)
        return self._shared

    def _num_bytes(self) -> int:
        return self._num_shared + sum(each.recording.num_bytes for each in self._recorded.values())
