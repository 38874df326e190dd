"""MistralForCausalLM: Llama without biases, with an optional sliding window in every layer (arXiv 2310.06825)."""

from dataclasses import dataclass
from typing import Any

from actorllm.models.contract import ConfigReader
from actorllm_llama.llama import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        return {"windows": (reader.take("sliding_window"),) * num_layers}


class MistralForCausalLM(LlamaForCausalLM):
    config_class = MistralConfig
