"""Phi3ForCausalLM: Llama with fused projections in its checkpoint, and rotary factors of its own (arXiv 2404.14219)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from actorllm.layers.rotary import Rotary
from actorllm.models.contract import ConfigReader
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaAttention, LlamaForCausalLM, LlamaLayer


@dataclass(frozen=True)
class Phi3Config(LlamaConfig):
    absent: ClassVar = {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}

    @classmethod
    def read_rotary(cls, reader: ConfigReader, head_dim: int, *, context_len: int) -> Rotary:
        rope = reader.rope() | {"original_max_position_embeddings": reader.take("original_max_position_embeddings")}
        name = rope.pop("type", None)
        name = rope.pop("rope_type", None) or name
        rope["rope_type"] = "longrope" if name in ("su", "yarn") else name  # what early files call it
        return Rotary.from_hf(head_dim, rope, context_len=context_len, partial=1.0)

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
            reader.expect(key, [False], "Phi-3 has no biases")
        for key in ("full_attn_mod", "interpolate_factor"):
            reader.expect(key, [1], "only the value of the published files is known")
        return {"windows": (reader.optional_size("sliding_window"),) * num_layers}


class Phi3Attention(LlamaAttention):
    qkv_names = "qkv_proj"


class Phi3Layer(LlamaLayer):
    attention_class = Phi3Attention
    mlp_names = ("gate_up_proj", "down_proj")


class Phi3ForCausalLM(LlamaForCausalLM):
    config_class = Phi3Config
    layer_class = Phi3Layer
