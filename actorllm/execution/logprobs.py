"""Log probabilities of the raw distribution: the model's own, before bias, penalties and temperature.

Legend: N tokens, W the most candidates that any of them asks for, V vocabulary.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actorllm.messages import TopLogprobs, pack

BLOCK_BYTES = 32 * 2**20
"""The most memory that the logits of one block of prompt tokens take."""


@dataclass(frozen=True, slots=True)
class Scores:
    """`chosen_N` is each token's own logprob; `ids_NW` and `values_NW` are the best candidates, best first."""

    chosen_N: Tensor
    ids_NW: Tensor
    values_NW: Tensor

    def to_host(self) -> "Scores":
        """A copy on the host that is valid once the device has reached this point."""
        return Scores(*(part.to("cpu", non_blocking=True) for part in (self.chosen_N, self.ids_NW, self.values_NW)))

    def message(self, start: int, end: int, width: int) -> TopLogprobs:
        """Tokens `[start, end)` with `width` candidates each (or the whole vocabulary); the tensors must be on the host."""
        width = min(width, self.ids_NW.shape[1])
        return TopLogprobs(
            width=width,
            chosen=array("f", self.chosen_N[start:end].tolist()).tobytes(),
            ids=pack(self.ids_NW[start:end, :width].flatten().tolist()),
            values=array("f", self.values_NW[start:end, :width].flatten().tolist()).tobytes(),
        )


def score(logprobs_NV: Tensor, ids_N: Tensor, width: int) -> Scores:
    """The logprobs of `ids` and of the `width` best candidates."""
    values_NW, ids_NW = logprobs_NV.topk(min(width, logprobs_NV.shape[1]))
    return Scores(logprobs_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1), ids_NW, values_NW)


def score_in_blocks(head: Callable[[Tensor], Tensor], hidden_ND: Tensor, *, ids_N: Tensor, width: int, vocab_size: int) -> Scores:
    """`score` for many tokens: the head runs over blocks of rows so that its logits never exceed `BLOCK_BYTES`."""
    block_len = max(1, BLOCK_BYTES // (4 * vocab_size))
    blocks: Sequence[Scores] = [
        score(head(hidden).log_softmax(-1), ids, width)
        for hidden, ids in zip(hidden_ND.split(block_len), ids_N.split(block_len), strict=True)
    ]
    return Scores(
        torch.cat([block.chosen_N for block in blocks]),
        torch.cat([block.ids_NW for block in blocks]),
        torch.cat([block.values_NW for block in blocks]),
    )
