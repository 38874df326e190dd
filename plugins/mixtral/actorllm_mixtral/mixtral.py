"""MixtralForCausalLM: Llama's attention, and in every layer experts instead of an MLP (arXiv 2401.04088).

Legend: T tokens, D hidden size.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from actorllm.layers.activation import gated
from actorllm.layers.batch import Batch
from actorllm.layers.experts import Experts, ExpertSizes, Router, Routing, SparseMLP
from actorllm.layers.norm import RMSNorm
from actorllm.layers.shard import Shard
from actorllm.models.contract import ConfigReader
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaAttention, LlamaForCausalLM


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(LlamaConfig):
    """`intermediate_size` is that of one expert."""

    absent: ClassVar = {
        "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    routing: Routing

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        reader.expect("attention_bias", [False], "Mixtral has no biases")
        for key in ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"):
            reader.neutral(key, "training")
        return {
            "windows": (reader.optional_size("sliding_window"),) * num_layers,
            "routing": Routing(reader.size("num_local_experts"), reader.size("num_experts_per_tok"), is_normalised=True),
        }


class MixtralLayer(nn.Module):
    def __init__(self, config: MixtralConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = LlamaAttention(config, layer, group=group, shard=shard)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        sizes = ExpertSizes(config.routing.num_experts, config.hidden_size, config.intermediate_size)
        experts = Experts(sizes, gated(config.activation), shard=shard, names=("w1", "w3", "w2"))
        self.block_sparse_moe = SparseMLP(Router(config.hidden_size, config.routing), experts)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), batch)
        return x_TD + self.block_sparse_moe(self.post_attention_layernorm(x_TD))


class MixtralForCausalLM(LlamaForCausalLM):
    config_class = MixtralConfig
    layer_class = MixtralLayer
    example_config: ClassVar = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
