"""What device rows have seen already, with counts that live on the device; `actorllm_kernels.sampling` penalizes by them.

Legend: R device rows, V vocabulary.
"""

import torch
from torch import Tensor

from actorllm.messages import RowSampling
from actorllm_kernels.sampling import Seen


def has_penalty(sampling: RowSampling) -> bool:
    """Whether a row needs its counts."""
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


class TokenCounts:
    """What each device row has seen. The memory (5 bytes * R * V) is taken when the first penalty asks for it."""

    def __init__(self, vocab_size: int, *, max_running: int, device: torch.device) -> None:
        self._shape = (max_running, vocab_size)
        self._device = device
        self._seen: Seen | None = None

    def open(self, row: int, prompt_ids: Tensor, output_ids: Tensor) -> None:
        """Start the counts of `row` from ids [N] int64 on the device."""
        # not bincount, which waits for a GPU to tell the largest id
        self.seen.output_RV[row].zero_().index_add_(0, output_ids, torch.ones_like(output_ids, dtype=torch.int32))
        self.seen.prompt_RV[row].zero_().index_fill_(0, prompt_ids, True)

    @property
    def seen(self) -> Seen:
        """As the operators read and count it."""
        if self._seen is None:
            self._seen = Seen(
                torch.zeros(self._shape, dtype=torch.int32, device=self._device),
                torch.zeros(self._shape, dtype=torch.bool, device=self._device),
            )
        return self._seen
