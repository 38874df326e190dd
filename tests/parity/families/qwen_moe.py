"""Qwen3 with experts."""

import random
from pathlib import Path
from typing import Any

from tests.parity.families.case import WINDOW, Build, attention_sizes, from_transformers, random_rope

ROPES = ("linear", "default", "llama3", "dynamic", "yarn")


def config(seed: int) -> dict[str, Any]:
    """Arguments of the transformers config."""
    draw = random.Random(f"qwen3_moe {seed}")
    num_experts = draw.choice((3, 6, 8))
    settings = attention_sizes(draw) | {
        "num_hidden_layers": 3,
        "rms_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "hidden_act": draw.choice(("silu", "gelu", "gelu_pytorch_tanh")),
        "tie_word_embeddings": seed % 4 in (0, 3),
        "attention_bias": seed % 3 == 0,
        "use_sliding_window": seed % 2 == 1,
        "sliding_window": WINDOW,
        "num_experts": num_experts,
        "num_experts_per_tok": draw.choice([count for count in (1, 2, 4, num_experts) if count <= num_experts]),
        "moe_intermediate_size": draw.choice((10, 17)),
        "norm_topk_prob": seed % 2 == 0,
        "mlp_only_layers": draw.choice(([], [1], [0, 2])),
        "decoder_sparse_step": draw.choice((1, 1, 2)),
    }
    if settings["decoder_sparse_step"] == 2 and 1 in settings["mlp_only_layers"]:
        settings["mlp_only_layers"] = []  # or no layer would have experts
    return settings | random_rope(ROPES[seed % len(ROPES)], draw)


def build(seed: int, directory: Path) -> Any:
    return from_transformers("Qwen3MoeForCausalLM", config(seed), seed=seed, directory=directory)


CASES: dict[str, Build] = {"Qwen3MoeForCausalLM": build}
