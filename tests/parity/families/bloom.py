"""Bloom."""

import random
from pathlib import Path
from typing import Any

from tests.parity.families.case import CONTEXT, VOCAB_SIZE, Build, from_transformers


def config(seed: int) -> dict[str, Any]:
    """Arguments of the transformers config. Numbers of heads that are no power of two have slopes of two series."""
    draw = random.Random(f"bloom {seed}")
    num_heads = (6, 4, 7, 8, 12, 2)[seed % 6]
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": num_heads * draw.choice((4, 6, 8)),
        "n_layer": draw.choice((2, 3)),
        "n_head": num_heads,
        "seq_length": CONTEXT,
        "layer_norm_epsilon": draw.choice((1e-6, 1e-5, 1e-2)),
        "apply_residual_connection_post_layernorm": seed % 2 == 1,
        "tie_word_embeddings": seed % 3 != 1,
        "pretraining_tp": draw.choice((1, 2)),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def build(seed: int, directory: Path) -> Any:
    return from_transformers("BloomForCausalLM", config(seed), seed=seed, directory=directory)


CASES: dict[str, Build] = {"BloomForCausalLM": build}
