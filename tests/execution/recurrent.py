"""A hybrid model in small: layer 0 attends over token slots, layer 1 carries a moving average on, one state a sequence.

`one_shot` is the same computation over a whole sequence at once, with no cache.

Legend: T tokens, D hidden size, V vocabulary, R device rows.
"""

import torch
from torch import Tensor, nn

from actorllm.layers.batch import Batch
from actorllm.models.contract import CacheBuffer, CacheGroup
from tests.table_model import AttendingLayer, TableLM

VOCAB_SIZE, HIDDEN, KEPT = 40, 8, 0.8
TABLE_VD = torch.randn(VOCAB_SIZE, HIDDEN, generator=torch.Generator().manual_seed(3))


class AveragingLayer(nn.Module):
    """h_t = 0.8 h_(t-1) + 0.2 x_t, from 0 on."""

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        states_RD = batch.cache.buffer(1, 1, "average")
        out_TD = torch.empty_like(x_TD)
        for span in batch.spans:
            is_first = span.query_len == span.seq_len
            state_D = torch.zeros_like(x_TD[0]) if is_first else states_RD[span.row].clone()
            for token in range(span.start, span.start + span.query_len):
                state_D = out_TD[token] = KEPT * state_D + (1 - KEPT) * x_TD[token]
            states_RD[span.row] = state_D
        return out_TD


class RecurrentLM(TableLM):
    cache_groups = (
        CacheGroup("full", (0,), (CacheBuffer("k", (1, HIDDEN)), CacheBuffer("v", (1, HIDDEN)))),
        CacheGroup("average", (1,), (CacheBuffer("average", (HIDDEN,)),), is_state=True),
    )

    def __init__(self) -> None:
        super().__init__(TABLE_VD, AttendingLayer(HIDDEN), AveragingLayer(), context_len=128)

    def head(self, hidden_TD: Tensor) -> Tensor:
        return 0.7 * super().head(hidden_TD)


def one_shot(ids: list[int]) -> Tensor:
    """[T, V] logits."""
    x_TD = TABLE_VD[ids]
    scores_TT = (x_TD @ x_TD.T * HIDDEN**-0.5).masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
    x_TD = x_TD + scores_TT.softmax(-1) @ x_TD
    distance_TT = torch.arange(len(ids)).unsqueeze(1) - torch.arange(len(ids))
    weights_TT = torch.where(distance_TT >= 0, (1 - KEPT) * KEPT ** distance_TT.clamp(min=0), 0.0)
    return 0.7 * (weights_TT @ x_TD) @ TABLE_VD.T
