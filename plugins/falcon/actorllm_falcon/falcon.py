"""FalconForCausalLM: Falcon (arXiv 2311.16867): attention and MLP side by side; the RW models (arXiv 2306.01116) one after another.

Legend: T tokens, D hidden size.
"""

import torch
from torch import Tensor, nn

from actorllm.layers.attention import Attention, alibi_slopes
from actorllm.layers.batch import Batch
from actorllm.layers.embedding import Embedding, Head
from actorllm.layers.linear import HeadSplit, PackedQKVLinear, QKVLinear, RowLinear
from actorllm.layers.mlp import MLP
from actorllm.layers.norm import LayerNorm
from actorllm.layers.rotary import RotaryTables
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheBuffer, CacheGroup, CausalLM
from actorllm_falcon.config import FalconConfig


class FalconAttention(nn.Module):
    def __init__(self, config: FalconConfig, layer: int, *, shard: Shard) -> None:
        super().__init__()
        size, bias, scale = config.hidden_size, config.has_bias, config.head_dim**-0.5
        split = HeadSplit.of(config.num_heads, config.num_kv_heads, head_dim=config.head_dim, shard=shard)
        if config.has_packed_qkv:
            self.query_key_value = PackedQKVLinear(size, split, name="query_key_value", bias=bias)
        else:
            self.query_key_value = QKVLinear(size, split, bias=bias, names="query_key_value")
        self.dense = RowLinear(size, size, shard=shard, cols=split.q_rows, bias=bias)
        slopes = None if config.rotary else scaled_slopes(config.num_heads, scale)[slice(*split.q_heads)]
        self.attention = Attention(layer, group=0, scale=scale, slopes=slopes)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.query_key_value.qkv(x_TD)
        return self.dense(self.attention(q, k, v, batch, angles=batch.tables).flatten(1))


class FalconLayer(nn.Module):
    def __init__(self, config: FalconConfig, layer: int, *, shard: Shard) -> None:
        super().__init__()
        for name in config.norms:
            self.add_module(name, LayerNorm(config.hidden_size, eps=config.norm_eps))
        self.self_attention = FalconAttention(config, layer, shard=shard)
        self.mlp = MLP(
            config.hidden_size,
            config.intermediate_size,
            activation_name=config.activation,
            shard=shard,
            names=("dense_h_to_4h", "dense_4h_to_h"),
            bias=config.has_bias,
        )
        self.norms = config.norms
        self.is_parallel = config.is_parallel

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        first, last = self.get_submodule(self.norms[0]), self.get_submodule(self.norms[-1])
        normed_TD = first(x_TD)
        attended_TD = x_TD + self.self_attention(normed_TD, batch)
        if not self.is_parallel:
            return attended_TD + self.mlp(last(attended_TD))
        return attended_TD + self.mlp(normed_TD if first is last else last(x_TD))


class FalconForCausalLM(CausalLM):
    config_class = FalconConfig
    renamed_prefixes = {"transformer.": ""}
    ignored_tensors = {"*.rotary_emb.inv_freq": "recomputed from the config"}
    example_config = {
        "model_type": "falcon", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "multi_query": True, "bias": False, "layer_norm_epsilon": 1e-5, "activation": "gelu",
        "ffn_hidden_size": 48, "tie_word_embeddings": True,
    }  # fmt: skip

    def __init__(self, config: FalconConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(FalconLayer(config, layer, shard=shard) for layer in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, eps=config.norm_eps)
        tied = self.word_embeddings if config.is_tied else None
        self.lm_head = Head(config.hidden_size, config.vocab_size, shard=shard, tied=tied)

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        split = HeadSplit.of(self.config.num_heads, self.config.num_kv_heads, head_dim=self.config.head_dim, shard=self.shard)
        per_token = (split.num_local_kv_heads, self.config.head_dim)
        return (CacheGroup("full", tuple(range(self.config.num_layers)), (CacheBuffer("k", per_token), CacheBuffer("v", per_token))),)

    def tied_tensors(self) -> dict[str, str]:
        return {"lm_head.weight": "word_embeddings.weight"} if self.config.is_tied else {}

    def prepare(self, batch: Batch) -> RotaryTables | None:
        assert self.ln_f.weight is not None, "the model has no weights yet"
        rotary = self.config.rotary
        return rotary and rotary.tables(batch.positions_T, self.ln_f.weight.dtype)

    def embed(self, batch: Batch) -> Tensor:
        return self.word_embeddings(batch.token_ids_T, batch.given)

    def layer(self, index: int) -> nn.Module:
        return self.h[index]

    def norm(self, state: Tensor) -> Tensor:
        return self.ln_f(state)

    def head(self, hidden_TD: Tensor) -> Tensor:
        return self.lm_head(hidden_TD)


def scaled_slopes(num_heads: int, scale: float) -> list[float]:
    """ALiBi's slopes as the published models have them: in bfloat16, and scaled as the products of queries and keys are."""
    slopes_H = torch.tensor(alibi_slopes(num_heads), dtype=torch.bfloat16, device="cpu")
    return [slope * scale for slope in slopes_H.tolist()]
