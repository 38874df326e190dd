"""Token and position embeddings, and the output head. Legend: T tokens, D hidden size, V vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from actorllm.layers.batch import GivenEmbeddings
from actorllm.layers.shard import Shard
from actorllm.weights.linear_weight import DenseWeight, LinearWeight
from actorllm.weights.source import WeightSource
from actorllm_kernels.embedding import embedding


class Embedding(nn.Module):
    """ids [T] -> [T, D]: the table's rows times `scale`; `given` embeddings stand in their place as they are.

    Every rank holds the whole table: a lookup reads T rows only. `is_head`: a head multiplies by all of it, so it is packed at once,
    while little else is in memory.
    """

    def __init__(self, vocab_size: int, hidden_size: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.shape = (vocab_size, hidden_size)
        self.scale = scale
        self.is_head = False
        self.table: LinearWeight | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        table = source.table(prefix.removesuffix("."), self.shape)
        self.table = table.packed_table() if self.is_head else table

    def unload(self) -> None:
        self.table = None

    @property
    def dtype(self) -> torch.dtype:
        """The model's precision."""
        assert self.table is not None, "the layer has no weights yet"
        return self.table.dtype

    def forward(self, ids_T: Tensor, given: Sequence[GivenEmbeddings] = ()) -> Tensor:
        assert self.table is not None, "the layer has no weights yet"
        x_TD = self.table.rows(ids_T)
        if self.scale != 1.0:
            # In the model's precision, as models are trained: Gemma's sqrt(3072) is 55.5 in bfloat16.
            x_TD = x_TD * torch.tensor(self.scale, dtype=x_TD.dtype)
        for span in given:
            x_TD[span.start : span.start + len(span.values_TD)] = span.values_TD
        return x_TD


class PositionEmbedding(nn.Module):
    """positions [T] -> [T, D]: a learned row for each of `num_positions`, after `offset` rows that no position uses."""

    def __init__(self, num_positions: int, hidden_size: int, *, offset: int = 0) -> None:
        super().__init__()
        self.shape = (num_positions + offset, hidden_size)
        self.offset = offset
        self.weight: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        self.weight = source.tensor(f"{prefix}weight", self.shape)

    def unload(self) -> None:
        self.weight = None

    def forward(self, positions_T: Tensor) -> Tensor:
        assert self.weight is not None, "the layer has no weights yet"
        return embedding(positions_T + self.offset, self.weight)


class Head(nn.Module):
    """hidden [T, D] -> float32 logits [T, V]; each rank computes its part of the vocabulary, then all gather.

    With `tied`, the embedding's table is used and nothing is pulled. `soft_cap` limits logits to that size by a tanh
    (arXiv 2408.00118). `is_normalised` brings every token's row to length 1 (arXiv 2309.10305).
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        *,
        shard: Shard,
        tied: Embedding | None = None,
        soft_cap: float | None = None,
        is_normalised: bool = False,
    ) -> None:
        super().__init__()
        assert tied is None or not is_normalised, "the embedding's own rows are not normalised"
        self.is_normalised = is_normalised
        self.soft_cap = soft_cap
        self.shape = (vocab_size, hidden_size)
        self.rows = shard.span(vocab_size)
        self.sizes = [end - start for start, end in shard.spans(vocab_size)]
        self.shard = shard
        self._tied = [tied]  # in a list: the table stays the embedding's, not a second submodule
        if tied is not None:
            tied.is_head = shard.num_ranks == 1
        self.weight: LinearWeight | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        if self.is_normalised:
            rows_VD = source.tensor(f"{prefix}weight", self.shape, rows=self.rows)
            self.weight = DenseWeight(nn.functional.normalize(rows_VD)).packed()
        elif (embedding := self._tied[0]) is None:
            self.weight = source.table(prefix.removesuffix("."), self.shape, rows=self.rows).packed()
        else:
            assert embedding.table is not None, "an embedding is loaded before the head that is tied to it"
            if not embedding.is_head:
                self.weight = embedding.table.outputs(*self.rows).packed_table()

    def unload(self) -> None:
        self.weight = None

    def forward(self, hidden_TD: Tensor) -> Tensor:
        embedding = self._tied[0]
        weight = self.weight if self.weight is not None or embedding is None else embedding.table
        assert weight is not None, "the layer has no weights yet"
        logits = weight(hidden_TD).to(torch.float32)
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return self.shard.collectives.all_gather(logits, self.sizes)
