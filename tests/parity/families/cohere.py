"""Command R."""

import random
from pathlib import Path
from typing import Any

from tests.parity.families.case import Build, attention_sizes, from_transformers, random_rope

ROPES = ("default", "yarn", "dynamic", "linear", "llama3")


def config(seed: int) -> dict[str, Any]:
    """Arguments of the transformers config."""
    draw = random.Random(f"cohere {seed}")
    settings = attention_sizes(draw) | random_rope(ROPES[seed % len(ROPES)], draw)
    return settings | {
        "layer_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "hidden_act": draw.choice(("silu", "gelu", "relu")),
        "tie_word_embeddings": seed % 2 == 0,
        "use_qk_norm": seed % 4 in (1, 2),
        "attention_bias": draw.random() < 0.5,
        "logit_scale": draw.choice((0.0625, 0.5, 3.0)),
    }


def build(seed: int, directory: Path) -> Any:
    return from_transformers("CohereForCausalLM", config(seed), seed=seed, directory=directory)


CASES: dict[str, Build] = {"CohereForCausalLM": build}
