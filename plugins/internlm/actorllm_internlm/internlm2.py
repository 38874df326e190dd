"""InternLM2ForCausalLM: Llama with its query, key and value projections in one tensor, group by group (arXiv 2403.17297).

Legend: T tokens, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from actorllm.layers.attention import Attention
from actorllm.layers.batch import Batch
from actorllm.layers.linear import HeadSplit, PackedQKVLinear, RowLinear
from actorllm.layers.mlp import GatedMLP
from actorllm.layers.shard import Shard
from actorllm.models.contract import ConfigReader
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaForCausalLM


@dataclass(frozen=True)
class InternLM2Config(LlamaConfig):
    absent: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048}

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        has_bias = reader.flag("bias", True)
        return {"has_qkv_bias": has_bias, "has_output_bias": has_bias}


class InternLM2Attention(nn.Module):
    def __init__(self, config: InternLM2Config, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        split = HeadSplit.of(config.num_heads, config.num_kv_heads, head_dim=config.head_dim, shard=shard)
        num_q = config.num_heads * config.head_dim
        self.wqkv = PackedQKVLinear(config.hidden_size, split, name="wqkv", bias=config.has_qkv_bias)
        self.wo = RowLinear(num_q, config.hidden_size, shard=shard, cols=split.q_rows, bias=config.has_output_bias)
        self.attention = Attention(layer, group=group, scale=config.head_dim**-0.5)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.wqkv.qkv(x_TD)
        return self.wo(self.attention(q, k, v, batch, angles=batch.tables).flatten(1))


class InternLM2Layer(nn.Module):
    def __init__(self, config: InternLM2Config, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        self.attention_norm = config.new_norm()
        self.attention = InternLM2Attention(config, layer, group=group, shard=shard)
        self.ffn_norm = config.new_norm()
        self.feed_forward = GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            activation_name=config.activation,
            shard=shard,
            names=(("w1", "w3"), "w2"),
        )

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), batch)
        return x_TD + self.feed_forward(self.ffn_norm(x_TD))


class InternLM2ForCausalLM(LlamaForCausalLM):
    config_class = InternLM2Config
    layer_class = InternLM2Layer
    renamed_prefixes = {"model.tok_embeddings.": "model.embed_tokens.", "output.": "lm_head."}
