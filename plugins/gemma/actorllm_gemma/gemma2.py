"""Gemma2ForCausalLM: norms before and after each block, soft caps, a window in every other layer (arXiv 2408.00118).

Legend: T tokens, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from actorllm.layers.attention import Attention
from actorllm.layers.batch import Batch
from actorllm.layers.embedding import Embedding, Head
from actorllm.layers.linear import HeadSplit, QKVLinear, RowLinear
from actorllm.layers.mlp import GatedMLP
from actorllm.layers.norm import RMSNorm
from actorllm.layers.rotary import Rotary, RotaryTables
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheBuffer, CacheGroup, CausalLM, ConfigReader, window_groups
from actorllm_gemma.config import GemmaConfig


@dataclass(frozen=True)
class Gemma2Config(GemmaConfig):
    absent: ClassVar = {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }

    @classmethod
    def read_generation(cls, reader: ConfigReader, values: Mapping[str, Any]) -> dict[str, Any]:
        rotary = Rotary.from_hf(values["head_dim"], reader.rope(), context_len=values["context_len"])
        window, num_layers = reader.size("sliding_window", 4096), values["num_layers"]
        return {
            "context_len": rotary.context_len(values["context_len"]),
            "attention_soft_cap": reader.optional_number("attn_logit_softcapping"),
            "windows": reader.layer_windows(window, by_default=[layer % 2 == 0 for layer in range(num_layers)]),
            "rotary": rotary,
            "local_rotary": rotary,
        }


class Tables(NamedTuple):
    """Rotary tables of the layers that see everything, and of those with a window."""

    everywhere: RotaryTables
    local: RotaryTables


class GemmaAttention(nn.Module):
    def __init__(self, config: GemmaConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        split = HeadSplit.of(config.num_heads, config.num_kv_heads, head_dim=config.head_dim, shard=shard)
        num_q, has_bias = config.num_heads * config.head_dim, config.has_attention_bias
        self.qkv_proj = QKVLinear(config.hidden_size, split, bias=has_bias)
        self.o_proj = RowLinear(num_q, config.hidden_size, shard=shard, cols=split.q_rows, bias=has_bias)
        if config.has_qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps, weight_offset=1.0)
            self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps, weight_offset=1.0)
        self.has_qk_norm = config.has_qk_norm
        self.is_local = config.windows[layer] is not None
        self.attention = Attention(
            layer,
            group=group,
            scale=config.attention_scale,
            window=config.windows[layer],
            soft_cap=config.attention_soft_cap,
        )

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.qkv_proj.qkv(x_TD)
        if self.has_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        tables: Tables = batch.tables
        rotary = tables.local if self.is_local else tables.everywhere
        return self.o_proj(self.attention(q, k, v, batch, angles=rotary).flatten(1))


class GemmaLayer(nn.Module):
    def __init__(self, config: GemmaConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        self.input_layernorm = hidden_norm(config)
        self.self_attn = GemmaAttention(config, layer, group=group, shard=shard)
        self.post_attention_layernorm = hidden_norm(config)
        self.pre_feedforward_layernorm = hidden_norm(config)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, activation_name=config.activation, shard=shard)
        self.post_feedforward_layernorm = hidden_norm(config)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        x_TD = x_TD + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x_TD), batch))
        return x_TD + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_TD)))


def hidden_norm(config: GemmaConfig) -> RMSNorm:
    """A norm of hidden states; the checkpoint holds its weight less one."""
    return RMSNorm(config.hidden_size, eps=config.norm_eps, weight_offset=1.0)


class GemmaModel(nn.Module):
    def __init__(self, config: GemmaConfig, *, groups: tuple[int, ...], shard: Shard) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, scale=config.hidden_size**0.5)
        self.layers = nn.ModuleList(GemmaLayer(config, layer, group=group, shard=shard) for layer, group in enumerate(groups))
        self.norm = hidden_norm(config)


class Gemma2ForCausalLM(CausalLM):
    config_class = Gemma2Config
    ignored_tensors = {"*.rotary_emb.inv_freq": "recomputed from the config"}

    def __init__(self, config: GemmaConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        split = HeadSplit.of(config.num_heads, config.num_kv_heads, head_dim=config.head_dim, shard=shard)
        per_token = (split.num_local_kv_heads, config.head_dim)
        self._groups, layer_groups = window_groups(config.windows, (CacheBuffer("k", per_token), CacheBuffer("v", per_token)))
        self.model = GemmaModel(config, groups=layer_groups, shard=shard)
        tied = self.model.embed_tokens if config.is_tied else None
        self.lm_head = Head(config.hidden_size, config.vocab_size, shard=shard, tied=tied, soft_cap=config.final_soft_cap)

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        return self._groups

    def tied_tensors(self) -> dict[str, str]:
        return {"lm_head.weight": "model.embed_tokens.weight"} if self.config.is_tied else {}

    def prepare(self, batch: Batch) -> Tables:
        dtype = self.model.embed_tokens.dtype
        everywhere = self.config.rotary.tables(batch.positions_T, dtype)
        is_one = self.config.local_rotary == self.config.rotary
        return Tables(everywhere, everywhere if is_one else self.config.local_rotary.tables(batch.positions_T, dtype))

    def embed(self, batch: Batch) -> Tensor:
        return self.model.embed_tokens(batch.token_ids_T, batch.given)

    def layer(self, index: int) -> nn.Module:
        return self.model.layers[index]

    def norm(self, state: Tensor) -> Tensor:
        return self.model.norm(state)

    def head(self, hidden_TD: Tensor) -> Tensor:
        return self.lm_head(hidden_TD)
