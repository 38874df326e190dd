"""BloomForCausalLM: Bloom (arXiv 2211.05100): ALiBi, a norm after the embedding, queries, keys and values head by head.

Legend: T tokens, D hidden size.
"""

from torch import Tensor, nn

from actorllm.layers.attention import Attention, alibi_slopes
from actorllm.layers.batch import Batch
from actorllm.layers.embedding import Embedding, Head
from actorllm.layers.linear import HeadSplit, PackedQKVLinear, RowLinear
from actorllm.layers.mlp import MLP
from actorllm.layers.norm import LayerNorm
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheBuffer, CacheGroup, CausalLM
from actorllm_bloom.config import BloomConfig


class BloomAttention(nn.Module):
    def __init__(self, config: BloomConfig, layer: int, *, shard: Shard) -> None:
        super().__init__()
        size = config.hidden_size
        split = HeadSplit.of(config.num_heads, config.num_heads, head_dim=config.head_dim, shard=shard)
        self.query_key_value = PackedQKVLinear(size, split, name="query_key_value", bias=True)
        self.dense = RowLinear(size, size, shard=shard, cols=split.q_rows, bias=True)
        slopes = alibi_slopes(config.num_heads)[slice(*split.q_heads)]
        self.attention = Attention(layer, group=0, scale=config.head_dim**-0.5, slopes=slopes)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.query_key_value.qkv(x_TD)
        return self.dense(self.attention(q, k, v, batch).flatten(1))


class BloomBlock(nn.Module):
    def __init__(self, config: BloomConfig, layer: int, *, shard: Shard) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attention = BloomAttention(config, layer, shard=shard)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = MLP(
            config.hidden_size,
            config.intermediate_size,
            activation_name="gelu_pytorch_tanh",
            shard=shard,
            names=("dense_h_to_4h", "dense_4h_to_h"),
        )
        self.has_normed_residual = config.has_normed_residual

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        normed_TD = self.input_layernorm(x_TD)
        x_TD = (normed_TD if self.has_normed_residual else x_TD) + self.self_attention(normed_TD, batch)
        normed_TD = self.post_attention_layernorm(x_TD)
        return (normed_TD if self.has_normed_residual else x_TD) + self.mlp(normed_TD)


class BloomForCausalLM(CausalLM):
    config_class = BloomConfig
    renamed_prefixes = {"transformer.": ""}
    example_config = {
        "model_type": "bloom", "vocab_size": 96, "hidden_size": 48, "n_layer": 2, "n_head": 6, "layer_norm_epsilon": 1e-5,
        "apply_residual_connection_post_layernorm": False, "tie_word_embeddings": True,
    }  # fmt: skip

    def __init__(self, config: BloomConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.h = nn.ModuleList(BloomBlock(config, layer, shard=shard) for layer in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, eps=config.norm_eps)
        tied = self.word_embeddings if config.is_tied else None
        self.lm_head = Head(config.hidden_size, config.vocab_size, shard=shard, tied=tied)

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        split = HeadSplit.of(self.config.num_heads, self.config.num_heads, head_dim=self.config.head_dim, shard=self.shard)
        per_token = (split.num_local_kv_heads, self.config.head_dim)
        return (CacheGroup("full", tuple(range(self.config.num_layers)), (CacheBuffer("k", per_token), CacheBuffer("v", per_token))),)

    def tied_tensors(self) -> dict[str, str]:
        return {"lm_head.weight": "word_embeddings.weight"} if self.config.is_tied else {}

    def embed(self, batch: Batch) -> Tensor:
        return self.word_embeddings_layernorm(self.word_embeddings(batch.token_ids_T, batch.given))

    def layer(self, index: int) -> nn.Module:
        return self.h[index]

    def norm(self, state: Tensor) -> Tensor:
        return self.ln_f(state)

    def head(self, hidden_TD: Tensor) -> Tensor:
        return self.lm_head(hidden_TD)
