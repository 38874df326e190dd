"""DeepSeek-V2."""

import random
from pathlib import Path
from typing import Any

from tests.parity.families.case import CONTEXT, ORIGINAL_CONTEXT, VOCAB_SIZE, Build, from_transformers, random_rope

ROPES = ("yarn", "default", "linear")


def rope(kind: str, draw: random.Random) -> dict[str, Any]:
    """Published models have yarn with one `mscale` for both places; others show where each one acts."""
    if kind != "yarn":
        return random_rope(kind, draw)
    mscale, mscale_all_dim = draw.choice(((0.707, 0.707), (1.0, 0.4), (None, None)))
    parameters = {
        "rope_type": "yarn", "rope_theta": draw.choice((100.0, 10000.0)), "factor": 4.0, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": ORIGINAL_CONTEXT, "mscale": mscale, "mscale_all_dim": mscale_all_dim,
    }  # fmt: skip
    return {"rope_parameters": {key: value for key, value in parameters.items() if value is not None}}


def config(seed: int) -> dict[str, Any]:
    """Arguments of the transformers config."""
    draw = random.Random(f"deepseek_v2 {seed}")
    num_heads = draw.choice((2, 4, 5))
    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": num_heads * draw.choice((6, 8)),
        "intermediate_size": draw.choice((36, 50)),
        "num_hidden_layers": draw.choice((2, 3)),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "q_lora_rank": None if seed % 2 else draw.choice((8, 15)),
        "kv_lora_rank": draw.choice((12, 18)),
        "qk_nope_head_dim": draw.choice((8, 10)),
        "qk_rope_head_dim": draw.choice((4, 6)),
        "v_head_dim": draw.choice((6, 12)),
        "rms_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "hidden_act": draw.choice(("silu", "gelu")),
        "tie_word_embeddings": draw.random() < 0.5,
        "attention_bias": draw.random() < 0.5,
        "mlp_bias": draw.random() < 0.5,
        "first_k_dense_replace": draw.choice((0, 1)),
        "n_routed_experts": 8,
        "n_shared_experts": draw.choice((1, 2)),
        "num_experts_per_tok": draw.choice((1, 3, 4)),
        "moe_intermediate_size": draw.choice((10, 17)),
        "routed_scaling_factor": draw.choice((1.0, 2.5)),
        "topk_method": "greedy" if seed % 4 in (1, 2) else "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
    }
    return settings | rope(ROPES[seed % len(ROPES)], draw)


def build(seed: int, directory: Path) -> Any:
    return from_transformers("DeepseekV2ForCausalLM", config(seed), seed=seed, directory=directory)


CASES: dict[str, Build] = {"DeepseekV2ForCausalLM": build}
