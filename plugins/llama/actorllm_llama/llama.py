"""LlamaForCausalLM: Llama 1, 2, 3 and what shares their architecture (arXiv 2302.13971, 2307.09288, 2407.21783).

Legend: T tokens, D hidden size.
"""

from typing import ClassVar

from torch import Tensor, nn

from actorllm.layers.attention import Attention
from actorllm.layers.batch import Batch
from actorllm.layers.embedding import Embedding, Head
from actorllm.layers.linear import HeadSplit, QKVLinear, RowLinear
from actorllm.layers.mlp import GatedMLP
from actorllm.layers.rotary import RotaryTables
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheBuffer, CacheGroup, CausalLM, window_groups
from actorllm_llama.config import LlamaConfig


class LlamaAttention(nn.Module):
    qkv_names: ClassVar[tuple[str, str, str] | str] = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: LlamaConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        split = HeadSplit.of(config.num_heads, config.num_kv_heads, head_dim=config.head_dim, shard=shard)
        num_q = config.num_heads * config.head_dim
        self.qkv_proj = QKVLinear(config.hidden_size, split, bias=config.has_qkv_bias, names=self.qkv_names)
        self.o_proj = RowLinear(num_q, config.hidden_size, shard=shard, cols=split.q_rows, bias=config.has_output_bias)
        if config.has_qk_norm:
            self.q_norm, self.k_norm = config.new_qk_norms(split)
        self.has_qk_norm = config.has_qk_norm
        self.attention = Attention(layer, group=group, scale=config.head_dim**-0.5, window=config.windows[layer])

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.qkv_proj.qkv(x_TD)
        if self.has_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.o_proj(self.attention(q, k, v, batch, angles=batch.tables).flatten(1))


class LlamaLayer(nn.Module):
    attention_class: ClassVar[type[LlamaAttention]] = LlamaAttention
    mlp_names: ClassVar[tuple[tuple[str, str] | str, str]] = (("gate_proj", "up_proj"), "down_proj")

    def __init__(self, config: LlamaConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        self.input_layernorm = config.new_norm()
        self.self_attn = self.attention_class(config, layer, group=group, shard=shard)
        self.post_attention_layernorm = config.new_norm()
        self.mlp: nn.Module = GatedMLP(
            config.hidden_size, config.intermediate_size, activation_name=config.activation, shard=shard,
            bias=config.has_mlp_bias, names=self.mlp_names,
        )  # fmt: skip

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        x_TD, h_TD = self.post_attention_layernorm.after_add(x_TD, self.self_attn(self.input_layernorm(x_TD), batch))
        return x_TD + self.mlp(h_TD)


class LlamaModel(nn.Module):
    def __init__(self, config: LlamaConfig, layers: nn.ModuleList) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, scale=config.embedding_scale)
        self.layers = layers
        self.norm = config.new_norm()


class LlamaForCausalLM(CausalLM):
    config_class = LlamaConfig
    layer_class: ClassVar[type[nn.Module]] = LlamaLayer
    ignored_tensors = {"*.rotary_emb.inv_freq": "recomputed from the config"}

    def __init__(self, config: LlamaConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        split = HeadSplit.of(config.num_heads, config.num_kv_heads, head_dim=config.head_dim, shard=shard)
        per_token = (split.num_local_kv_heads, config.head_dim)
        self._groups, layer_groups = window_groups(config.windows, (CacheBuffer("k", per_token), CacheBuffer("v", per_token)))
        layers = nn.ModuleList(self.layer_class(config, i, group=group, shard=shard) for i, group in enumerate(layer_groups))
        self.model = LlamaModel(config, layers)
        tied = self.model.embed_tokens if config.is_tied else None
        self.lm_head = Head(config.hidden_size, config.vocab_size, shard=shard, tied=tied)

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        return self._groups

    def tied_tensors(self) -> dict[str, str]:
        return {"lm_head.weight": "model.embed_tokens.weight"} if self.config.is_tied else {}

    def prepare(self, batch: Batch) -> RotaryTables:
        assert self.model.norm.weight is not None, "the model has no weights yet"
        return self.config.rotary.tables(batch.positions_T, self.model.norm.weight.dtype)

    def embed(self, batch: Batch) -> Tensor:
        return self.model.embed_tokens(batch.token_ids_T, batch.given)

    def layer(self, index: int) -> nn.Module:
        return self.model.layers[index]

    def norm(self, state: Tensor) -> Tensor:
        return self.model.norm(state)

    def head(self, hidden_TD: Tensor) -> Tensor:
        return self.lm_head(hidden_TD)
