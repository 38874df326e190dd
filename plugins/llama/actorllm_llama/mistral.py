"""MistralForCausalLM: Llama without biases, with an optional sliding window in every layer (arXiv 2310.06825)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from actorllm.models.contract import ConfigReader
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaForCausalLM


@dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    absent: ClassVar = {"num_key_value_heads": 8, "sliding_window": 4096}

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        reader.expect("attention_bias", [False], "Mistral has no biases")
        return {"windows": (reader.optional_size("sliding_window"),) * num_layers}


class MistralForCausalLM(LlamaForCausalLM):
    config_class = MistralConfig
