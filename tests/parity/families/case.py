"""What the families share: the sizes that the tests rely on, and how a reference model becomes a checkpoint."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from actorllm.testing.reference import randomize

Build = Callable[[int, Path], Any]
"""`(seed, directory)`: writes a checkpoint with a tokenizer and returns its reference, a module called like a transformers
causal language model, in float32."""

VOCAB_SIZE = 120
ORIGINAL_CONTEXT = 24
CONTEXT = 96
WINDOW = 7


def from_transformers(architecture: str, config: dict[str, Any], *, seed: int, directory: Path) -> Any:
    """The transformers model of a config (arguments of its config class), with random weights, saved to `directory`."""
    model_class = getattr(transformers, architecture)
    model = model_class(model_class.config_class(**config)).eval().float()
    model.set_experts_implementation("eager")  # the others refuse sizes that are no multiple of 16 bytes
    randomize(model, seed)
    model.save_pretrained(directory)
    save_tokenizer(directory, VOCAB_SIZE)
    return model


def save_tokenizer(directory: Path, vocab_size: int) -> None:
    """A tokenizer of words `w0`, `w1`, ..., so that the checkpoint can be served."""
    words = tokenizers.models.WordLevel({f"w{index}": index for index in range(vocab_size)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def attention_sizes(draw: random.Random) -> dict[str, Any]:
    """Sizes of a decoder with grouped-query attention, by the names that most configs use."""
    num_heads = draw.choice((4, 6, 8))
    num_kv_heads = draw.choice([count for count in (1, 2, 3, num_heads) if num_heads % count == 0])
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": num_heads * draw.choice((4, 6)),
        "intermediate_size": draw.choice((36, 50)),
        "num_hidden_layers": draw.choice((2, 3)),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": draw.choice((8, 10, 12)),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def random_rope(kind: str, draw: random.Random, *, head_dim: int = 0) -> dict[str, Any]:
    """Rotary parameters whose scaling starts within the context that the tests use; longrope needs `head_dim`."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": draw.choice((100.0, 10000.0, 1e6))}
    if kind != "default":
        rope["factor"] = draw.choice((1.5, 4.0))
    if kind == "llama3":
        rope |= {
            "low_freq_factor": 1.0, "high_freq_factor": draw.choice((2.0, 4.0)),
            "original_max_position_embeddings": ORIGINAL_CONTEXT,
        }  # fmt: skip
    if kind == "yarn":
        rope |= {
            "beta_fast": draw.choice((1.0, 2.0)), "beta_slow": 0.25, "original_max_position_embeddings": ORIGINAL_CONTEXT,
            "truncate": draw.random() < 0.5,
        }  # fmt: skip
    if kind == "longrope":
        rope |= {
            "short_factor": [draw.uniform(0.5, 1.5) for _ in range(head_dim // 2)],
            "long_factor": [draw.uniform(1.0, 6.0) for _ in range(head_dim // 2)],
            "original_max_position_embeddings": ORIGINAL_CONTEXT,
        }  # fmt: skip
    if kind == "dynamic":
        return {"rope_parameters": rope, "max_position_embeddings": ORIGINAL_CONTEXT}
    return {"rope_parameters": rope}


def use_long_factors(model: Any) -> None:
    """Let a model whose context goes past the original one take the long factors for short sequences too, as a server does."""
    config, rotary = model.config, model.model.rotary_emb
    if rotary.rope_type == "longrope" and config.max_position_embeddings > config.rope_parameters["original_max_position_embeddings"]:
        frequencies, _ = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=config.max_position_embeddings)
        rotary.original_inv_freq.copy_(frequencies)
