"""Qwen3MoeForCausalLM: Qwen3 with experts instead of the MLP in some or all layers (arXiv 2505.09388)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from actorllm.layers.activation import gated
from actorllm.layers.experts import Experts, ExpertSizes, Router, Routing, SparseMLP
from actorllm.layers.shard import Shard
from actorllm.models.contract import ConfigReader, UnsupportedConfig
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaForCausalLM, LlamaLayer


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(LlamaConfig):
    """`intermediate_size` is that of layers without experts; `routings[i]` is layer i's (None: it has an MLP)."""

    absent: ClassVar = {"num_key_value_heads": 4, "sliding_window": 4096, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
    expert_size: int
    routings: tuple[Routing | None, ...]

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        has_bias = reader.flag("attention_bias")
        reader.expect("qkv_bias", [has_bias], "biases are those of attention_bias")
        reader.expect("use_qk_norm", [True], "queries and keys are always normalised")
        reader.expect("shared_expert_intermediate_size", [0], "there are no shared experts")
        reader.neutral("max_window_layers", "a window holds in all layers, as in transformers")
        for key in ("output_router_logits", "router_aux_loss_coef"):
            reader.neutral(key, "training")
        window = reader.optional_size("sliding_window")
        return {
            "has_qk_norm": True,
            "has_qkv_bias": has_bias,
            "has_output_bias": has_bias,
            "windows": (window if reader.flag("use_sliding_window") else None,) * num_layers,
            "expert_size": reader.size("moe_intermediate_size"),
            "routings": read_routings(reader, num_layers),
        }


def read_routings(reader: ConfigReader, num_layers: int) -> tuple[Routing | None, ...]:
    """Each layer's routing: every `decoder_sparse_step`-th layer has experts, unless `mlp_only_layers` lists it."""
    num_experts = reader.size("num_experts", reader.size("num_local_experts", 128, least=0), least=0)
    top_k, is_normalised = reader.size("num_experts_per_tok"), reader.flag("norm_topk_prob")
    step, mlp_only = reader.size("decoder_sparse_step", 1), reader.take("mlp_only_layers", [])
    if not isinstance(mlp_only, list) or not all(type(layer) is int and 0 <= layer < num_layers for layer in mlp_only):
        raise UnsupportedConfig(f"config.json: mlp_only_layers must list layers from 0 to {num_layers - 1}, not {mlp_only!r}")
    if num_experts == 0:
        return (None,) * num_layers
    routing = Routing(num_experts, top_k, is_normalised=is_normalised)
    return tuple(None if layer in mlp_only or (layer + 1) % step else routing for layer in range(num_layers))


class Qwen3MoeLayer(LlamaLayer):
    def __init__(self, config: Qwen3MoeConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__(config, layer, group=group, shard=shard)
        routing = config.routings[layer]
        if routing is not None:
            sizes = ExpertSizes(routing.num_experts, config.hidden_size, config.expert_size)
            experts = Experts(sizes, gated(config.activation), shard=shard)
            self.mlp = SparseMLP(Router(config.hidden_size, routing), experts)


class Qwen3MoeForCausalLM(LlamaForCausalLM):
    config_class = Qwen3MoeConfig
    layer_class = Qwen3MoeLayer
    example_config: ClassVar = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "num_experts": 6, "num_experts_per_tok": 3,
        "moe_intermediate_size": 16, "norm_topk_prob": True, "mlp_only_layers": [1],
    }  # fmt: skip
