"""OPT."""

import random
from pathlib import Path
from typing import Any

from tests.parity.families.case import CONTEXT, VOCAB_SIZE, Build, from_transformers


def config(seed: int) -> dict[str, Any]:
    """Arguments of the transformers config; every odd seed is built like the 350m."""
    draw = random.Random(f"opt {seed}")
    num_heads = draw.choice((2, 4, 6, 7))
    hidden_size = num_heads * draw.choice((6, 8, 10))
    is_small = seed % 2 == 1
    is_removed = seed % 8 == 2
    has_norm_weights = seed % 4 != 3
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden_size,
        "word_embed_proj_dim": draw.choice((20, 36)) if is_small or seed % 8 == 6 else hidden_size,
        "ffn_dim": draw.choice((36, 50)),
        "num_hidden_layers": draw.choice((2, 3)),
        "num_attention_heads": num_heads,
        "max_position_embeddings": CONTEXT,
        "do_layer_norm_before": not is_small,
        "_remove_final_layer_norm": is_removed,
        "activation_function": draw.choice(("relu", "relu", "gelu", "silu")),
        "enable_bias": seed % 3 != 2,
        "layer_norm_elementwise_affine": has_norm_weights,
        # The logits of the reference cannot be scaled where nothing follows them that is linear.
        "tie_word_embeddings": has_norm_weights and not is_removed and draw.random() < 0.7,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def build(seed: int, directory: Path) -> Any:
    return from_transformers("OPTForCausalLM", config(seed), seed=seed, directory=directory)


CASES: dict[str, Build] = {"OPTForCausalLM": build}
