"""Falcon: the layouts of 7B, 40B, 11B and RW in turn."""

import random
from pathlib import Path
from typing import Any

from tests.parity.families.case import CONTEXT, VOCAB_SIZE, Build, from_transformers, random_rope

LAYOUTS: tuple[dict[str, Any], ...] = (
    {"multi_query": True, "parallel_attn": True},
    {"new_decoder_architecture": True},
    {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    {"multi_query": False, "parallel_attn": True},
    {"multi_query": True, "parallel_attn": False},
)
ROPES = ("default", "linear", "dynamic", "llama3", "yarn")


def config(seed: int) -> dict[str, Any]:
    """Arguments of the transformers config."""
    draw = random.Random(f"falcon {seed}")
    layout = LAYOUTS[seed % len(LAYOUTS)]
    # With up to eight heads, and at this length, the reference's bfloat16 holds every ALiBi bias exactly.
    num_heads = draw.choice((4, 6, 8))
    hidden_size = num_heads * draw.choice((6, 8, 10))
    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden_size,
        "ffn_hidden_size": draw.choice((None, 36, 50)),
        "num_hidden_layers": draw.choice((2, 3)),
        "num_attention_heads": num_heads,
        "max_position_embeddings": CONTEXT,
        "layer_norm_epsilon": draw.choice((1e-6, 1e-5, 1e-2)),
        "activation": draw.choice(("gelu", "gelu", "relu", "silu")),
        "bias": draw.random() < 0.3,
        "alibi": seed % 12 == 6,
        "tie_word_embeddings": (seed + seed // len(LAYOUTS)) % 2 == 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if layout.get("new_decoder_architecture"):
        settings["num_kv_heads"] = draw.choice([count for count in (1, 2, 3, num_heads) if num_heads % count == 0])
    return settings | random_rope(ROPES[seed // 2 % len(ROPES)], draw) | layout


def build(seed: int, directory: Path) -> Any:
    return from_transformers("FalconForCausalLM", config(seed), seed=seed, directory=directory)


CASES: dict[str, Build] = {"FalconForCausalLM": build}
