"""gpt-oss: every second checkpoint has its experts in MXFP4, as the published ones do."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.parity.families.case import CONTEXT, WINDOW, Build, attention_sizes, from_transformers, random_rope
from tests.weights.mxfp4 import BLOCK, random_mxfp4

ROPES = ("yarn", "default", "linear", "yarn")
SLIDING, FULL = "sliding_attention", "full_attention"


def config(seed: int) -> dict[str, Any]:
    """Arguments of the transformers config."""
    draw = random.Random(f"gpt_oss {seed}")
    num_experts = draw.choice((3, 4, 8))
    settings = attention_sizes(draw) | {
        "num_hidden_layers": 3,
        "rms_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "tie_word_embeddings": draw.random() < 0.3,
        "attention_bias": seed % 4 != 2,
        "sliding_window": WINDOW,
        "num_local_experts": num_experts,
        "num_experts_per_tok": draw.choice([count for count in (1, 2, 4, num_experts) if count <= num_experts]),
        "swiglu_limit": draw.choice((0.7, 2.0, 7.0)),
        "swiglu_alpha": draw.choice((1.702, 0.5)),
    }
    if seed % 2:
        settings |= {"hidden_size": BLOCK * draw.choice((1, 2)), "intermediate_size": BLOCK * draw.choice((1, 3))}
    if draw.random() < 0.5:
        settings["layer_types"] = draw.choice(([FULL, SLIDING, SLIDING], [SLIDING] * 3, [FULL] * 3))
    return settings | random_rope(ROPES[seed % len(ROPES)], draw) | {"max_position_embeddings": CONTEXT}


@torch.no_grad()
def store_in_mxfp4(model: Any, directory: Path, seed: int) -> None:
    """Give the experts of a saved model random values that MXFP4 can say, and its checkpoint their bits."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for layer, block in enumerate(model.model.layers):
        for name, parameter in (("gate_up_proj", block.mlp.experts.gate_up_proj), ("down_proj", block.mlp.experts.down_proj)):
            num_experts, num_inputs, num_outputs = parameter.shape
            values, blocks, scales = random_mxfp4((num_experts, num_outputs, num_inputs), exponents=(-6, -3), seed=seed + layer)
            parameter.copy_(values.transpose(1, 2))
            stored = f"model.layers.{layer}.mlp.experts.{name}"
            del tensors[stored]
            tensors |= {f"{stored}_blocks": blocks, f"{stored}_scales": scales}
    save_file(tensors, file)
    settings = json.loads((directory / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (directory / "config.json").write_text(json.dumps(settings))


def build(seed: int, directory: Path) -> Any:
    model = from_transformers("GptOssForCausalLM", config(seed), seed=seed, directory=directory)
    if seed % 2:
        store_in_mxfp4(model, directory, seed)
    return model


CASES: dict[str, Build] = {"GptOssForCausalLM": build}
