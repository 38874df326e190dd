"""OPTForCausalLM: OPT (arXiv 2205.01068), also the 350m with its projected embedding and norms after the sums.

Legend: T tokens, E width of the token table, D hidden size.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from actorllm.layers.activation import activation
from actorllm.layers.attention import Attention
from actorllm.layers.batch import Batch
from actorllm.layers.embedding import Embedding, Head, PositionEmbedding
from actorllm.layers.linear import ColumnLinear, HeadSplit, QKVLinear, RowLinear
from actorllm.layers.norm import LayerNorm
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheBuffer, CacheGroup, CausalLM
from actorllm_opt.config import OPTConfig

POSITION_OFFSET = 2
"""Rows of the position table that no position uses: left from the padding of the code that OPT was trained with."""
NORM_EPS = 1e-5
WHOLE = Shard()
"""The projections of the embedding are small: every rank computes them whole."""


class OPTAttention(nn.Module):
    def __init__(self, config: OPTConfig, layer: int, *, shard: Shard) -> None:
        super().__init__()
        size, bias = config.hidden_size, config.has_bias
        split = HeadSplit.of(config.num_heads, config.num_heads, head_dim=config.head_dim, shard=shard)
        self.qkv_proj = QKVLinear(size, split, bias=bias)
        self.out_proj = RowLinear(size, size, shard=shard, cols=split.q_rows, bias=bias)
        self.attention = Attention(layer, group=0, scale=config.head_dim**-0.5)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.qkv_proj.qkv(x_TD)
        return self.out_proj(self.attention(q, k, v, batch).flatten(1))


class OPTLayer(nn.Module):
    def __init__(self, config: OPTConfig, layer: int, *, shard: Shard) -> None:
        super().__init__()
        size, bias = config.hidden_size, config.has_bias
        self.self_attn = OPTAttention(config, layer, shard=shard)
        self.self_attn_layer_norm = layer_norm(config)
        self.fc1 = ColumnLinear(size, config.intermediate_size, name="fc1", shard=shard, bias=bias)
        self.fc2 = RowLinear(config.intermediate_size, size, shard=shard, bias=bias)
        self.final_layer_norm = layer_norm(config)
        self.activation = activation(config.activation)
        self.is_pre_norm = config.is_pre_norm

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        x_TD = self.residual(x_TD, partial(self.self_attn, batch=batch), self.self_attn_layer_norm)
        return self.residual(x_TD, self.feed_forward, self.final_layer_norm)

    def residual(self, x_TD: Tensor, block: Callable[[Tensor], Tensor], norm: LayerNorm) -> Tensor:
        """What goes in plus what the block makes of it, with the norm before the block or after the sum."""
        return x_TD + block(norm(x_TD)) if self.is_pre_norm else norm(x_TD + block(x_TD))

    def feed_forward(self, x_TD: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_TD)))


class OPTForCausalLM(CausalLM):
    config_class = OPTConfig
    renamed_prefixes = {"model.decoder.": "", "decoder.": ""}
    example_config = {
        "model_type": "opt", "vocab_size": 96, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "do_layer_norm_before": True, "word_embed_proj_dim": 32, "enable_bias": True,
        "layer_norm_elementwise_affine": True, "activation_function": "relu", "tie_word_embeddings": True,
    }  # fmt: skip

    def __init__(self, config: OPTConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        size, embedding_size = config.hidden_size, config.embedding_size
        is_projected = embedding_size != size
        self.embed_tokens = Embedding(config.vocab_size, embedding_size)
        self.embed_positions = PositionEmbedding(config.context_len, size, offset=POSITION_OFFSET)
        self.project_in = ColumnLinear(embedding_size, size, name="project_in", shard=WHOLE) if is_projected else nn.Identity()
        self.layers = nn.ModuleList(OPTLayer(config, layer, shard=shard) for layer in range(config.num_layers))
        self.final_layer_norm = layer_norm(config) if config.has_final_norm else nn.Identity()
        self.project_out = ColumnLinear(size, embedding_size, name="project_out", shard=WHOLE) if is_projected else nn.Identity()
        tied = self.embed_tokens if config.is_tied else None
        self.lm_head = Head(embedding_size, config.vocab_size, shard=shard, tied=tied)

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        split = HeadSplit.of(self.config.num_heads, self.config.num_heads, head_dim=self.config.head_dim, shard=self.shard)
        per_token = (split.num_local_kv_heads, self.config.head_dim)
        return (CacheGroup("full", tuple(range(self.config.num_layers)), (CacheBuffer("k", per_token), CacheBuffer("v", per_token))),)

    def tied_tensors(self) -> dict[str, str]:
        return {"lm_head.weight": "embed_tokens.weight"} if self.config.is_tied else {}

    def embed(self, batch: Batch) -> Tensor:
        x_TE = self.embed_tokens(batch.token_ids_T, batch.given)
        return self.project_in(x_TE) + self.embed_positions(batch.positions_T)

    def layer(self, index: int) -> nn.Module:
        return self.layers[index]

    def norm(self, state: Tensor) -> Tensor:
        return self.project_out(self.final_layer_norm(state))

    def head(self, hidden_TD: Tensor) -> Tensor:
        return self.lm_head(hidden_TD)


def layer_norm(config: OPTConfig) -> LayerNorm:
    has_weights = config.has_norm_weights
    return LayerNorm(config.hidden_size, eps=NORM_EPS, has_weight=has_weights, has_bias=has_weights)
