"""Penalties on tokens that a row has seen already, with counts that live on the device.

Repetition follows CTRL (arXiv 1909.05858) over prompt and output: a seen token's logit is divided by the penalty if
positive, multiplied if not. Frequency and presence follow OpenAI, over the output alone: logit - count * frequency
- (count > 0) * presence. The order is repetition, frequency, presence, as in vLLM.

Legend: R device rows, S samples, V vocabulary.
"""

import torch
from torch import Tensor

from actorllm.messages import RowSampling


def has_penalty(sampling: RowSampling) -> bool:
    """Whether a row needs its counts."""
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


class TokenCounts:
    """What each device row has seen. The memory (5 bytes * R * V) is taken when the first penalty asks for it."""

    def __init__(self, vocab_size: int, *, max_running: int, device: torch.device) -> None:
        self._shape = (max_running, vocab_size)
        self._device = device
        self._memory: tuple[Tensor, Tensor] | None = None

    def open(self, row: int, prompt_ids: Tensor, output_ids: Tensor) -> None:
        """Start the counts of `row` from ids [N] int64 on the device."""
        output_RV, prompt_RV = self._tables()
        # not bincount, which waits for a GPU to tell the largest id
        output_RV[row].zero_().index_add_(0, output_ids, torch.ones_like(output_ids, dtype=output_RV.dtype))
        prompt_RV[row].zero_().index_fill_(0, prompt_ids, True)

    def penalize(self, logits_SV: Tensor, rows_S: Tensor, penalties_S3: Tensor) -> Tensor:
        """The logits after the penalties; columns of `penalties_S3` are repetition, presence, frequency."""
        output_RV, prompt_RV = self._tables()
        repetition_S1, presence_S1, frequency_S1 = penalties_S3.split(1, dim=1)
        counts_SV = output_RV[rows_S]
        is_output_SV = counts_SV > 0
        factor_SV = torch.where(logits_SV > 0, 1 / repetition_S1, repetition_S1)
        logits_SV = torch.where(is_output_SV | prompt_RV[rows_S], logits_SV * factor_SV, logits_SV)
        return logits_SV - counts_SV * frequency_S1 - is_output_SV * presence_S1

    def add(self, rows_S: Tensor, ids_S: Tensor) -> None:
        """Count one new output token of each row."""
        output_RV, _ = self._tables()
        output_RV.index_put_((rows_S, ids_S), output_RV.new_ones(1), accumulate=True)

    def _tables(self) -> tuple[Tensor, Tensor]:
        if self._memory is None:
            self._memory = (
                torch.zeros(self._shape, dtype=torch.int32, device=self._device),
                torch.zeros(self._shape, dtype=torch.bool, device=self._device),
            )
        return self._memory
