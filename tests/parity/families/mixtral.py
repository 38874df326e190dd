"""Mixtral."""

import random
from pathlib import Path
from typing import Any

from tests.parity.families.case import WINDOW, Build, attention_sizes, from_transformers, random_rope

ROPES = ("default", "linear", "dynamic", "llama3", "yarn")


def config(seed: int) -> dict[str, Any]:
    """Arguments of the transformers config."""
    draw = random.Random(f"mixtral {seed}")
    num_experts = draw.choice((2, 4, 7))
    settings = attention_sizes(draw) | {
        "rms_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "hidden_act": draw.choice(("silu", "gelu", "gelu_pytorch_tanh")),
        "tie_word_embeddings": seed % 4 in (1, 2),
        "sliding_window": WINDOW if seed % 2 == 0 else None,
        "num_local_experts": num_experts,
        "num_experts_per_tok": draw.choice([count for count in (1, 2, 3) if count <= num_experts]),
    }
    return settings | random_rope(ROPES[seed % len(ROPES)], draw)


def build(seed: int, directory: Path) -> Any:
    return from_transformers("MixtralForCausalLM", config(seed), seed=seed, directory=directory)


CASES: dict[str, Build] = {"MixtralForCausalLM": build}
