"""GPT-2 and StarCoder."""

import random
from functools import partial
from pathlib import Path
from typing import Any

from tests.parity.families.case import CONTEXT, VOCAB_SIZE, Build, from_transformers

ARCHITECTURES = ("GPT2LMHeadModel", "GPTBigCodeForCausalLM")


def config(architecture: str, seed: int) -> dict[str, Any]:
    """Arguments of the architecture's transformers config."""
    draw = random.Random(f"{architecture} {seed}")
    num_heads = draw.choice((4, 5, 6, 8))
    num_heads += architecture == "GPT2LMHeadModel" and num_heads == 5
    settings = {
        "vocab_size": VOCAB_SIZE,
        "n_positions": CONTEXT,
        "n_embd": num_heads * draw.choice((6, 8, 10)),
        "n_layer": draw.choice((2, 3)),
        "n_head": num_heads,
        "n_inner": draw.choice((None, 36, 50)),
        "activation_function": draw.choice(("gelu_new", "gelu", "gelu_pytorch_tanh", "relu", "silu")),
        "layer_norm_epsilon": draw.choice((1e-6, 1e-5, 1e-2)),
        "scale_attn_weights": seed % 3 != 1,
        "tie_word_embeddings": seed % 4 in (0, 3),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if architecture == "GPT2LMHeadModel":
        return settings | {"scale_attn_by_inverse_layer_idx": seed % 2 == 1, "reorder_and_upcast_attn": seed % 4 == 1}
    return settings | {"multi_query": seed % 2 == 0, "attention_softmax_in_fp32": seed % 4 < 2}


def build(seed: int, directory: Path, *, architecture: str) -> Any:
    return from_transformers(architecture, config(architecture, seed), seed=seed, directory=directory)


CASES: dict[str, Build] = {name: partial(build, architecture=name) for name in ARCHITECTURES}
