"""Gemma3ForCausalLM: Gemma 2 with normalised queries and keys in place of attention's soft cap, and two rotary bases, one for
the layers with a window (arXiv 2503.19786). Checkpoints that also read images are served as text models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from actorllm.layers.rotary import Rotary
from actorllm.models.contract import ConfigReader, UnsupportedConfig
from actorllm_gemma.config import GemmaConfig
from actorllm_gemma.gemma2 import Gemma2ForCausalLM

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Gemma3Config(GemmaConfig):
    absent: ClassVar = {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    }

    @classmethod
    def read_generation(cls, reader: ConfigReader, values: Mapping[str, Any]) -> dict[str, Any]:
        reader.expect("attn_logit_softcapping", [], "Gemma 3 normalises queries and keys instead")
        reader.neutral("_sliding_window_pattern", "layer_types stands beside it")
        window, every = reader.size("sliding_window", 4096), reader.size("sliding_window_pattern", 6)
        head_dim, context_len = values["head_dim"], values["context_len"]
        full, local = read_ropes(reader)
        return {
            "windows": reader.layer_windows(window, by_default=[(i + 1) % every != 0 for i in range(values["num_layers"])]),
            "rotary": Rotary.from_hf(head_dim, full, context_len=context_len),
            "local_rotary": Rotary.from_hf(head_dim, local, context_len=context_len),
            "has_qk_norm": True,
        }


def read_ropes(reader: ConfigReader) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rotary parameters of the layers that see everything and of those with a window.

    Older files have `rope_theta` and `rope_scaling` for the former and `rope_local_base_freq` for the latter, transformers 5
    has `rope_parameters` by the type of a layer.
    """
    by_type = reader.take("rope_parameters", {})
    if not isinstance(by_type, dict) or not {FULL, SLIDING}.issuperset(by_type):
        raise UnsupportedConfig(f"config.json: rope_parameters must be for {FULL} and {SLIDING}, not {by_type!r}")
    full = {"rope_theta": 1e6, **reader.rope()}
    local = {"rope_theta": reader.number("rope_local_base_freq", 1e4)}
    for parameters, kind in ((full, FULL), (local, SLIDING)):
        given = by_type.get(kind) or {}
        if not isinstance(given, dict):
            raise UnsupportedConfig(f"config.json: rope_parameters of {kind} are {given!r}, but must be an object")
        parameters.update(given)
    return full, local


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    config_class = Gemma3Config


@dataclass(frozen=True)
class Gemma3TextOfImagesConfig(Gemma3Config):
    """The text part of a config for text and images."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json; raises `UnsupportedConfig` for what this family does not compute."""
        reader = ConfigReader(config)
        text = reader.take("text_config")
        if not isinstance(text, dict):
            raise UnsupportedConfig(f"config.json: text_config is {text!r}, but must be an object")
        is_tied = reader.flag("tie_word_embeddings", True)
        for key in ("vision_config", "mm_tokens_per_image", "image_token_index", "boi_token_index", "eoi_token_index"):
            reader.neutral(key, "images are not read")
        reader.finish()
        read = super().from_hf({"architectures": config.get("architectures"), **text, "tie_word_embeddings": is_tied})
        if read.final_soft_cap is not None:
            raise UnsupportedConfig("config.json: final_logit_softcapping is for text models, where images are read there is none")
        return read


class Gemma3ForConditionalGeneration(Gemma3ForCausalLM):
    config_class = Gemma3TextOfImagesConfig
    example_config: ClassVar = {
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 64,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 8,
            "patch_size": 4,
        },
        "mm_tokens_per_image": 4,
    }
    renamed_prefixes = {
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.language_model.": "model.",
    }
    ignored_tensors = {
        **Gemma3ForCausalLM.ignored_tensors,
        **{f"{prefix}vision_tower.*": "images are not read" for prefix in ("", "model.")},
        **{f"{prefix}multi_modal_projector.*": "images are not read" for prefix in ("", "model.")},
    }
