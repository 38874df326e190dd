"""Gemma 2, Gemma 3, and the text part of a Gemma 3 that also reads images."""

import random
from pathlib import Path
from typing import Any

from tests.parity.families.case import WINDOW, Build, attention_sizes, from_transformers, random_rope

SLIDING, FULL = "sliding_attention", "full_attention"
ROPES = ("linear", "llama3", "default", "yarn")
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8, "patch_size": 4}


def shared(draw: random.Random, seed: int) -> dict[str, Any]:
    """What both generations vary."""
    settings = attention_sizes(draw) | {
        "num_hidden_layers": 3,
        "rms_norm_eps": draw.choice((1e-6, 1e-2)),
        "hidden_activation": draw.choice(("gelu_pytorch_tanh", "gelu", "silu")),
        "tie_word_embeddings": seed % 2 == 0,
        "attention_bias": seed % 2 == 1,
        "query_pre_attn_scalar": draw.choice((5, 24, 256)),
        "sliding_window": WINDOW,
        "final_logit_softcapping": (4.0, 30.0, None)[seed % 3],
    }
    if seed % 2:
        settings["layer_types"] = draw.choice(([FULL, SLIDING, SLIDING], [SLIDING, FULL, FULL], [SLIDING] * 3))
    return settings


def gemma2(seed: int, directory: Path) -> Any:
    draw = random.Random(f"Gemma2 {seed}")
    settings = shared(draw, seed) | {"attn_logit_softcapping": (1.5, 50.0, None)[(seed + seed // 3) % 3]}
    settings |= random_rope((*ROPES, "dynamic")[seed % 5], draw)
    return from_transformers("Gemma2ForCausalLM", settings, seed=seed, directory=directory)


def gemma3_settings(seed: int) -> dict[str, Any]:
    draw = random.Random(f"Gemma3 {seed}")
    full = random_rope(ROPES[seed % 4], draw)["rope_parameters"]
    full.pop("truncate", None)  # transformers looks for it where the parameters are the same for all layers
    local = {"rope_type": "default", "rope_theta": draw.choice((100.0, 1e4))}
    settings = shared(draw, seed) | {"rope_parameters": {FULL: full, SLIDING: local}}
    if "layer_types" not in settings:
        settings["sliding_window_pattern"] = draw.choice((2, 3))
    return settings


def gemma3(seed: int, directory: Path) -> Any:
    return from_transformers("Gemma3ForCausalLM", gemma3_settings(seed), seed=seed, directory=directory)


def gemma3_with_images(seed: int, directory: Path) -> Any:
    """Image tokens are ids as any other where no image comes with them."""
    text = gemma3_settings(seed)
    text |= {"layer_types": [SLIDING, FULL, SLIDING], "final_logit_softcapping": None}
    settings = {"text_config": text, "vision_config": VISION, "mm_tokens_per_image": 4, "tie_word_embeddings": seed % 2 == 0}
    tokens = {"image_token_index": 119, "boi_token_index": 118, "eoi_token_index": 117}
    return from_transformers("Gemma3ForConditionalGeneration", settings | tokens, seed=seed, directory=directory)


CASES: dict[str, Build] = {
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Gemma3ForConditionalGeneration": gemma3_with_images,
}
