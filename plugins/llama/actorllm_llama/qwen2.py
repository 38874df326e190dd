"""Qwen2ForCausalLM: Llama with biases on queries, keys and values; upper layers may have a window (arXiv 2407.10671)."""

from dataclasses import dataclass
from typing import Any

from actorllm.models.contract import ConfigReader
from actorllm_llama.llama import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        return {"has_qkv_bias": True, "windows": layer_windows(reader, num_layers)}


class Qwen2ForCausalLM(LlamaForCausalLM):
    config_class = Qwen2Config


def layer_windows(reader: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
    """Each layer's window: by `layer_types`, or from layer `max_window_layers` on; none unless `use_sliding_window`."""
    window = reader.take("sliding_window", 4096)
    first = reader.take("max_window_layers", 28)
    kinds = reader.take("layer_types")
    if not reader.flag("use_sliding_window"):
        return (None,) * num_layers
    if kinds is None:
        return tuple(window if layer >= first else None for layer in range(num_layers))
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
