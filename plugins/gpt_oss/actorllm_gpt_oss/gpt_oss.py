"""GptOssForCausalLM: attention with sinks, a window in every other layer, and in every layer experts with biases and a clamped
inner function (arXiv 2508.10925).

Legend: T tokens, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from actorllm.layers.attention import Sinks
from actorllm.layers.batch import Batch
from actorllm.layers.experts import Experts, ExpertSizes, Router, Routing, clamped_swiglu
from actorllm.layers.shard import Shard
from actorllm.models.contract import ConfigReader
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaAttention, LlamaForCausalLM, LlamaLayer


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(LlamaConfig):
    """`intermediate_size` is that of one expert; `swiglu_limit` and `swiglu_alpha` are what clamps its inner function."""

    absent: ClassVar = {
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "attention_bias": True, "num_local_experts": 128,
    }  # fmt: skip
    absent_rope: ClassVar = {
        "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False,
    }  # fmt: skip
    routing: Routing
    swiglu_limit: float
    swiglu_alpha: float

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json; raises `UnsupportedConfig` for what this architecture does not compute."""
        has_rope = any(config.get(key) is not None for key in ("rope_scaling", "rope_parameters"))
        return super().from_hf(config if has_rope else {**config, "rope_scaling": cls.absent_rope})

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        has_bias = reader.flag("attention_bias")
        window, top_k = reader.size("sliding_window", 128), reader.size("num_experts_per_tok", 4)
        reader.expect("experts_per_token", [top_k], "num_experts_per_tok says otherwise")
        reader.expect("hidden_act", ["silu"], "its experts have an inner function of their own")
        reader.neutral("initial_context_length", "the rope parameters say it")
        for key in ("output_router_logits", "router_aux_loss_coef"):
            reader.neutral(key, "training")
        return {
            "has_qkv_bias": has_bias,
            "has_output_bias": has_bias,
            "windows": reader.layer_windows(window, by_default=[layer % 2 == 0 for layer in range(num_layers)]),
            "routing": Routing(reader.size("num_local_experts"), top_k, is_normalised=True),
            "swiglu_limit": reader.number("swiglu_limit", 7.0),
            "swiglu_alpha": reader.number("swiglu_alpha", 1.702),
        }


class GptOssAttention(LlamaAttention):
    def __init__(self, config: GptOssConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__(config, layer, group=group, shard=shard)
        self.sinks = Sinks(self.qkv_proj.split)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.qkv_proj.qkv(x_TD)
        return self.o_proj(self.attention(q, k, v, batch, angles=batch.tables, sinks_H=self.sinks()).flatten(1))


class GptOssMLP(nn.Module):
    def __init__(self, config: GptOssConfig, shard: Shard) -> None:
        super().__init__()
        sizes = ExpertSizes(config.routing.num_experts, config.hidden_size, config.intermediate_size)
        combine = clamped_swiglu(config.swiglu_limit, config.swiglu_alpha)
        self.router = Router(config.hidden_size, config.routing, bias=True)
        self.experts = Experts(sizes, combine, shard=shard, bias=True, names=None, is_interleaved=True)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.experts(x_TD, *self.router(x_TD))


class GptOssLayer(LlamaLayer):
    attention_class = GptOssAttention

    def __init__(self, config: GptOssConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__(config, layer, group=group, shard=shard)
        self.mlp = GptOssMLP(config, shard)


class GptOssForCausalLM(LlamaForCausalLM):
    config_class = GptOssConfig
    layer_class = GptOssLayer
    transposed_linears = ("*.experts.gate_up_proj", "*.experts.down_proj")
    example_config: ClassVar = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": 9, "rope_scaling": {"rope_type": "default"},
    }  # fmt: skip
