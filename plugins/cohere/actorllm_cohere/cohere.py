"""CohereForCausalLM (Command R): attention beside the MLP under one norm without bias, interleaved rotation, scaled logits.

Legend: T tokens, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from actorllm.layers.batch import Batch
from actorllm.layers.linear import HeadSplit
from actorllm.layers.norm import HeadNorm, LayerNorm
from actorllm.layers.rotary import Rotary
from actorllm.layers.shard import Shard
from actorllm.models.contract import ConfigReader
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaForCausalLM, LlamaLayer


@dataclass(frozen=True, kw_only=True)
class CohereConfig(LlamaConfig):
    absent: ClassVar = {"layer_norm_eps": 1e-5, "tie_word_embeddings": True}
    eps_key: ClassVar = "layer_norm_eps"
    logit_scale: float

    @classmethod
    def read_rotary(cls, reader: ConfigReader, head_dim: int, *, context_len: int) -> Rotary:
        rope = {"rope_theta": 500000.0} | reader.rope()
        return Rotary.from_hf(head_dim, rope, context_len=context_len, is_interleaved=True)

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        has_bias = reader.flag("attention_bias")
        longest = reader.optional_size("model_max_length")  # Command R was made for more than its max_position_embeddings
        return ({"context_len": longest} if longest else {}) | {
            "has_qkv_bias": has_bias,
            "has_output_bias": has_bias,
            "has_qk_norm": reader.flag("use_qk_norm"),
            "logit_scale": reader.number("logit_scale", 0.0625),
        }

    def new_norm(self) -> LayerNorm:
        return LayerNorm(self.hidden_size, eps=self.norm_eps, has_bias=False)

    def new_qk_norms(self, split: HeadSplit) -> tuple[nn.Module, nn.Module]:
        return (
            HeadNorm(split.num_heads, self.head_dim, heads=split.q_heads, eps=self.norm_eps),
            HeadNorm(split.num_kv_heads, self.head_dim, heads=split.kv_heads, eps=self.norm_eps),
        )


class CohereLayer(LlamaLayer):
    def __init__(self, config: CohereConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__(config, layer, group=group, shard=shard)
        del self.post_attention_layernorm

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        normed_TD = self.input_layernorm(x_TD)
        return x_TD + self.self_attn(normed_TD, batch) + self.mlp(normed_TD)


class CohereForCausalLM(LlamaForCausalLM):
    config_class = CohereConfig
    layer_class = CohereLayer

    def head(self, hidden_TD: Tensor) -> Tensor:
        return super().head(hidden_TD) * self.config.logit_scale
