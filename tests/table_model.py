"""The frame of tests' smallest models: a random table embeds ids and is the head as well; what lies between is the test's.

Legend: T tokens, D hidden size, V vocabulary.
"""

from typing import NamedTuple

from torch import Tensor, nn

from actorllm.layers.attention import Attention
from actorllm.layers.batch import Batch
from actorllm.layers.shard import Shard
from actorllm.models.contract import CausalLM


class TableConfig(NamedTuple):
    vocab_size: int
    context_len: int
    num_layers: int


class AttendingLayer(nn.Module):
    """One head of attention over layer 0 of the first cache group; `x` is its query, key and value."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = Attention(0, group=0, scale=dim**-0.5)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        x_T1D = x_TD.unsqueeze(1)
        return x_TD + self.attention(x_T1D, x_T1D, x_T1D, batch, angles=batch.tables).squeeze(1)


class TableLM(CausalLM):
    """`layers` between `table_VD` and its transpose."""

    config_class = TableConfig  # type: ignore[assignment]

    def __init__(self, table_VD: Tensor, *layers: nn.Module, context_len: int) -> None:
        super().__init__(TableConfig(len(table_VD), context_len, len(layers)), Shard())
        self.table_VD = table_VD
        self.layers = nn.ModuleList(layers)

    def embed(self, batch: Batch) -> Tensor:
        return self.table_VD[batch.token_ids_T]

    def layer(self, index: int) -> nn.Module:
        return self.layers[index]

    def norm(self, state: Tensor) -> Tensor:
        return state

    def head(self, hidden_TD: Tensor) -> Tensor:
        return hidden_TD @ self.table_VD.T
