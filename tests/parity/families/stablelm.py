"""StableLM."""

import random
from pathlib import Path
from typing import Any

from tests.parity.families.case import Build, attention_sizes, from_transformers, random_rope

ROPES = ("default", "dynamic", "yarn", "linear", "llama3")


def config(seed: int) -> dict[str, Any]:
    """Arguments of the transformers config."""
    draw = random.Random(f"stablelm {seed}")
    settings = attention_sizes(draw) | random_rope(ROPES[seed % len(ROPES)], draw)
    settings["hidden_size"] = settings["num_attention_heads"] * draw.choice((16, 32))
    settings["rope_parameters"]["partial_rotary_factor"] = draw.choice((0.25, 0.5, 1.0))
    del settings["head_dim"]
    return settings | {
        "layer_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "hidden_act": draw.choice(("silu", "gelu", "relu")),
        "tie_word_embeddings": draw.random() < 0.5,
        "use_qkv_bias": draw.random() < 0.5,
        "qk_layernorm": seed % 2 == 0,
        "use_parallel_residual": seed % 4 in (0, 3),
    }


def build(seed: int, directory: Path) -> Any:
    return from_transformers("StableLmForCausalLM", config(seed), seed=seed, directory=directory)


CASES: dict[str, Build] = {"StableLmForCausalLM": build}
