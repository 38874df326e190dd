"""MiniCPMForCausalLM: Llama with scaled embeddings, residual branches and logits (arXiv 2404.06395, section 3).

Legend: T tokens, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from actorllm.layers.batch import Batch
from actorllm.layers.shard import Shard
from actorllm.models.contract import ConfigReader
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaForCausalLM, LlamaLayer


@dataclass(frozen=True, kw_only=True)
class MiniCPMConfig(LlamaConfig):
    """`residual_scale` is for what attention and MLP add; the last hidden states are made smaller as the model is wider than
    `base_width`, the one that its learning rate was tuned for."""

    absent: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048, "tie_word_embeddings": True}
    residual_scale: float
    base_width: int

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        has_bias = reader.flag("attention_bias")
        reader.neutral("mup_denominator", "for models that draft ahead of this one")
        return {
            "has_qkv_bias": has_bias,
            "has_output_bias": has_bias,
            "embedding_scale": reader.number("scale_emb", 1.0),
            "residual_scale": reader.number("scale_depth", 1.0) / num_layers**0.5,
            "base_width": reader.size("dim_model_base", 1),
        }


class MiniCPMLayer(LlamaLayer):
    def __init__(self, config: MiniCPMConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__(config, layer, group=group, shard=shard)
        self.scale = config.residual_scale

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        x_TD = x_TD + self.scale * self.self_attn(self.input_layernorm(x_TD), batch)
        return x_TD + self.scale * self.mlp(self.post_attention_layernorm(x_TD))


class MiniCPMForCausalLM(LlamaForCausalLM):
    config_class = MiniCPMConfig
    layer_class = MiniCPMLayer

    def head(self, hidden_TD: Tensor) -> Tensor:
        return super().head(hidden_TD * (self.config.base_width / self.config.hidden_size))
