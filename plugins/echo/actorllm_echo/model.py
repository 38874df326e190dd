"""A model of the plugin contract that computes nothing but a successor, and checks the engine while it does.

Each layer stores every token in the cache and reads it and its predecessor back through the slot table. If the
predecessor's slot does not hold the position before, the logits are NaN and the request fails: wrong slots cannot go
unnoticed. Knows no weights.

Legend: T tokens, B entries of the batch, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from actorllm.layers.batch import Batch
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheBuffer, CacheGroup, CausalLM, ConfigReader, UnsupportedConfig

LOGIT = 30.0
"""The successor's logit; all others are 0, so at temperature 1 it is all but certain."""

DIGIT = 256
"""The largest count of values that bfloat16 tells apart exactly; larger numbers are stored as digits."""


@dataclass(frozen=True)
class EchoConfig:
    """`next_ids[i]` follows token i; without it, `i + 1` does, modulo the vocabulary's size."""

    vocab_size: int
    context_len: int
    num_layers: int
    next_ids: tuple[int, ...] | None = None

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json; raises `UnsupportedConfig` for a wrong value or an unknown key."""
        reader = ConfigReader(config)
        vocab_size = reader.size("vocab_size", most=DIGIT * DIGIT)
        context_len = reader.size("max_position_embeddings")
        num_layers = reader.layers()
        next_ids = reader.take("next_ids")
        reader.finish()
        if next_ids is not None and not _are_ids(next_ids, vocab_size):
            raise UnsupportedConfig("config.json: next_ids must name one token id for each of vocab_size tokens")
        return cls(vocab_size, context_len, num_layers, None if next_ids is None else tuple(next_ids))


class EchoLayer(nn.Module):
    """Writes tokens into the cache and reads them back. A state of -1 is a token whose slots were wrong."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, ids_T: Tensor, batch: Batch) -> Tensor:
        places_T = batch.positions_T
        stored = batch.cache.buffer(0, self.index, "tokens")
        digits_T3 = torch.stack((ids_T // DIGIT, ids_T % DIGIT, places_T % DIGIT), dim=1)
        stored[batch.write_slots_T[0]] = digits_T3.to(stored.dtype)
        rows_T, table = batch.rows_T, batch.slot_tables[0]
        own_T3 = stored[table[rows_T, places_T]].long()
        before_T3 = stored[table[rows_T, (places_T - 1).clamp(min=0)]].long()
        is_chained_T = (places_T == 0) | (before_T3[:, 2] == (places_T - 1) % DIGIT)
        return torch.where(is_chained_T & (ids_T >= 0), own_T3[:, 0] * DIGIT + own_T3[:, 1], -1)


class EchoForCausalLM(CausalLM):
    """`num_layers` layers that remember, and a head that answers with the successor."""

    config_class = EchoConfig
    example_config = {"vocab_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 64}

    def __init__(self, config: EchoConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        self.layers = nn.ModuleList(EchoLayer(index) for index in range(config.num_layers))

    @property
    def cache_groups(self) -> Sequence[CacheGroup]:
        return (CacheGroup("tokens", tuple(range(self.config.num_layers)), (CacheBuffer("tokens", (3,), is_exact=True),)),)

    def embed(self, batch: Batch) -> Tensor:
        return batch.token_ids_T

    def layer(self, index: int) -> nn.Module:
        return self.layers[index]

    def norm(self, state: Tensor) -> Tensor:
        return state.float().unsqueeze(1)

    def head(self, hidden_TD: Tensor) -> Tensor:
        ids_T = hidden_TD[:, 0].long()
        if self.config.next_ids is None:
            next_T = (ids_T + 1) % self.config.vocab_size
        else:
            next_T = torch.tensor(self.config.next_ids, device=ids_T.device)[ids_T.clamp(min=0)]
        logits_TV = torch.zeros(len(ids_T), self.config.vocab_size, device=ids_T.device)
        logits_TV.scatter_(1, next_T.unsqueeze(1), LOGIT)
        return logits_TV.masked_fill((ids_T < 0).unsqueeze(1), torch.nan)


def _are_ids(values: Any, vocab_size: int) -> bool:
    if not isinstance(values, list) or len(values) != vocab_size:
        return False
    return all(isinstance(value, int) and 0 <= value < vocab_size for value in values)
