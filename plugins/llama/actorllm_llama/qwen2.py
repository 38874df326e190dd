"""Qwen2ForCausalLM: Llama with biases on queries, keys and values; upper layers may have a window (arXiv 2407.10671)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from actorllm.models.contract import ConfigReader
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaForCausalLM


@dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    absent: ClassVar = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        reader.expect("use_mrope", [False], "positions of images are not built")
        return {"has_qkv_bias": True, "windows": layer_windows(reader, num_layers)}


class Qwen2ForCausalLM(LlamaForCausalLM):
    config_class = Qwen2Config


def layer_windows(reader: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
    """Each layer's window: by `layer_types`, or from layer `max_window_layers` on; none unless `use_sliding_window`."""
    window, first = reader.optional_size("sliding_window"), reader.size("max_window_layers", num_layers, least=0)
    if not reader.flag("use_sliding_window"):
        window = None
    return reader.layer_windows(window, by_default=[layer >= first for layer in range(num_layers)])
