"""Phi-3."""

import random
from pathlib import Path
from typing import Any

from tests.parity.families.case import (
    CONTEXT,
    ORIGINAL_CONTEXT,
    WINDOW,
    Build,
    attention_sizes,
    from_transformers,
    use_long_factors,
)


def config(seed: int) -> dict[str, Any]:
    """Arguments of the transformers config."""
    draw = random.Random(f"phi {seed}")
    settings = attention_sizes(draw)
    head_dim, partial = draw.choice((16, 32)), draw.choice((0.5, 0.75, 1.0))
    settings["hidden_size"] = settings["num_attention_heads"] * head_dim
    del settings["head_dim"]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": draw.choice((100.0, 10000.0)), "partial_rotary_factor": partial}
    if seed % 3 != 1:
        num_frequencies = int(head_dim * partial) // 2
        rope |= {
            "rope_type": "longrope",
            "short_factor": [draw.uniform(0.5, 1.5) for _ in range(num_frequencies)],
            "long_factor": [draw.uniform(1.0, 6.0) for _ in range(num_frequencies)],
        }
    if seed % 3 == 2:  # no context goes past the original one: the short factors
        rope["attention_factor"] = draw.choice((1.0, 1.25))
    return settings | {
        "original_max_position_embeddings": CONTEXT if seed % 3 == 2 else ORIGINAL_CONTEXT,
        "rope_parameters": rope,
        "rms_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "hidden_act": draw.choice(("silu", "gelu_pytorch_tanh", "relu")),
        "tie_word_embeddings": draw.random() < 0.5,
        "sliding_window": WINDOW if seed % 2 == 0 else None,
    }


def build(seed: int, directory: Path) -> Any:
    model = from_transformers("Phi3ForCausalLM", config(seed), seed=seed, directory=directory)
    use_long_factors(model)
    return model


CASES: dict[str, Build] = {"Phi3ForCausalLM": build}
