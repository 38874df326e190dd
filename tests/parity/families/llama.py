"""Llama, Mistral, Qwen2 and Qwen3."""

import random
from functools import partial
from pathlib import Path
from typing import Any

from tests.parity.families.case import WINDOW, Build, attention_sizes, from_transformers, random_rope, use_long_factors

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPES = ("llama3", "dynamic", "linear", "default", "yarn", "longrope")


def config(architecture: str, seed: int) -> dict[str, Any]:
    """Arguments of the architecture's transformers config."""
    draw = random.Random(f"{architecture} {seed}")
    turn = seed + ARCHITECTURES.index(architecture)
    settings = attention_sizes(draw) | {
        "rms_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "hidden_act": draw.choice(("silu", "gelu", "gelu_pytorch_tanh", "relu")),
        "tie_word_embeddings": (turn + turn // len(ROPES)) % 2 == 0,
    }
    settings |= random_rope(ROPES[turn % len(ROPES)], draw, head_dim=settings["head_dim"])
    if architecture == "LlamaForCausalLM":
        settings |= {"attention_bias": seed % 2 == 1, "mlp_bias": draw.random() < 0.5}
    elif architecture == "MistralForCausalLM":
        settings["sliding_window"] = WINDOW if seed % 2 == 0 else None
    else:
        settings |= {"use_sliding_window": seed % 2 == 0, "sliding_window": WINDOW, "max_window_layers": 1}
    if architecture == "Qwen3ForCausalLM":
        settings["attention_bias"] = seed % 2 == 1
    return settings


def build(seed: int, directory: Path, *, architecture: str) -> Any:
    model = from_transformers(architecture, config(architecture, seed), seed=seed, directory=directory)
    use_long_factors(model)
    return model


CASES: dict[str, Build] = {name: partial(build, architecture=name) for name in ARCHITECTURES}
