"""GPT2LMHeadModel: GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Legend: T tokens, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from actorllm.layers.attention import Attention
from actorllm.layers.batch import Batch
from actorllm.layers.embedding import Embedding, Head, PositionEmbedding
from actorllm.layers.linear import HeadSplit, PackedQKVLinear, QKVLinear, RowLinear
from actorllm.layers.mlp import MLP
from actorllm.layers.norm import LayerNorm
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheBuffer, CacheGroup, CausalLM, ConfigReader
from actorllm_gpt.config import GPTConfig


@dataclass(frozen=True)
class GPT2Config(GPTConfig):
    default_activation: ClassVar = "gelu_new"

    @classmethod
    def read_variant(cls, reader: ConfigReader, values: Mapping[str, Any]) -> dict[str, Any]:
        reader.neutral("reorder_and_upcast_attn", "another order of the same products")
        reader.neutral("n_special", "a note of the original's training")
        reader.neutral("predict_special_tokens", "a note of the original's training")
        if not reader.flag("scale_attn_by_inverse_layer_idx"):
            return {}
        return {"scales": tuple(scale / (layer + 1) for layer, scale in enumerate(values["scales"]))}


class GPTAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int, *, shard: Shard) -> None:
        super().__init__()
        split = HeadSplit.of(config.num_heads, config.num_kv_heads, head_dim=config.head_dim, shard=shard)
        if config.has_packed_qkv:
            self.c_attn = PackedQKVLinear(config.hidden_size, split, name="c_attn", bias=True)
        else:
            self.c_attn = QKVLinear(config.hidden_size, split, bias=True, names="c_attn")
        self.c_proj = RowLinear(config.hidden_size, config.hidden_size, shard=shard, cols=split.q_rows, bias=True)
        self.attention = Attention(layer, group=0, scale=config.scales[layer])

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.c_attn.qkv(x_TD)
        return self.c_proj(self.attention(q, k, v, batch).flatten(1))


class GPTBlock(nn.Module):
    def __init__(self, config: GPTConfig, layer: int, *, shard: Shard) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = GPTAttention(config, layer, shard=shard)
        self.ln_2 = LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = MLP(
            config.hidden_size,
            config.intermediate_size,
            activation_name=config.activation,
            shard=shard,
            names=("c_fc", "c_proj"),
        )

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        x_TD = x_TD + self.attn(self.ln_1(x_TD), batch)
        return x_TD + self.mlp(self.ln_2(x_TD))


class GPT2LMHeadModel(CausalLM):
    config_class = GPT2Config
    renamed_prefixes = {"transformer.": ""}
    transposed_linears = ("*.c_attn", "*.c_fc", "*.c_proj")
    ignored_tensors = {"h.*.attn.bias": "the causal mask", "h.*.attn.masked_bias": "a constant of the causal mask"}
    example_config = {
        "model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "n_inner": 48, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new", "tie_word_embeddings": True,
    }  # fmt: skip

    def __init__(self, config: GPTConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        self.wte = Embedding(config.vocab_size, config.hidden_size)
        self.wpe = PositionEmbedding(config.context_len, config.hidden_size)
        self.h = nn.ModuleList(GPTBlock(config, layer, shard=shard) for layer in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, eps=config.norm_eps)
        tied = self.wte if config.is_tied else None
        self.lm_head = Head(config.hidden_size, config.vocab_size, shard=shard, tied=tied)

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        split = HeadSplit.of(self.config.num_heads, self.config.num_kv_heads, head_dim=self.config.head_dim, shard=self.shard)
        per_token = (split.num_local_kv_heads, self.config.head_dim)
        return (CacheGroup("full", tuple(range(self.config.num_layers)), (CacheBuffer("k", per_token), CacheBuffer("v", per_token))),)

    def tied_tensors(self) -> dict[str, str]:
        return {"lm_head.weight": "wte.weight"} if self.config.is_tied else {}

    def embed(self, batch: Batch) -> Tensor:
        return self.wte(batch.token_ids_T, batch.given) + self.wpe(batch.positions_T)

    def layer(self, index: int) -> nn.Module:
        return self.h[index]

    def norm(self, state: Tensor) -> Tensor:
        return self.ln_f(state)

    def head(self, hidden_TD: Tensor) -> Tensor:
        return self.lm_head(hidden_TD)
