"""Qwen3ForCausalLM: Llama with normalised queries and keys (arXiv 2505.09388)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from actorllm.models.contract import ConfigReader
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaForCausalLM
from actorllm_llama.qwen2 import Qwen2Config, layer_windows


@dataclass(frozen=True)
class Qwen3Config(LlamaConfig):
    absent: ClassVar = {**Qwen2Config.absent, "head_dim": 128}

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        has_bias = reader.flag("attention_bias")
        return {
            "has_qk_norm": True,
            "has_qkv_bias": has_bias,
            "has_output_bias": has_bias,
            "windows": layer_windows(reader, num_layers),
        }


class Qwen3ForCausalLM(LlamaForCausalLM):
    config_class = Qwen3Config
