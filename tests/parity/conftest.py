"""Random tiny models of each architecture, made by transformers and saved as real checkpoints.

`PARITY_CONFIGS` is how many configurations of each architecture are compared (2 by default). The same seed always gives
the same model; consecutive seeds walk through the features of an architecture, so that two already cover many.
"""

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from actorllm.testing.reference import randomize

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
NUM_CONFIGS = int(os.environ.get("PARITY_CONFIGS", "2"))
VOCAB_SIZE = 120
ORIGINAL_CONTEXT = 24
CONTEXT = 96
WINDOW = 7


@dataclass(frozen=True)
class ParityCase:
    """A transformers model in float32, and the directory it was saved to with a tokenizer."""

    model: Any
    directory: Path

    @property
    def rope_type(self) -> str:
        return self.model.config.rope_parameters["rope_type"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "parity_case" in metafunc.fixturenames:
        names = [(architecture, seed) for architecture in ARCHITECTURES for seed in range(NUM_CONFIGS)]
        metafunc.parametrize("parity_case", names, indirect=True, ids=[f"{name}-{seed}" for name, seed in names], scope="session")


@pytest.fixture(scope="session")
def new_parity_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ParityCase]:
    """Builds the case of an architecture and a seed; `changes` override the configuration."""

    def build(architecture: str, seed: int, **changes: Any) -> ParityCase:
        config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
        config = config_class(**(random_config(architecture, seed) | changes))
        model = getattr(transformers, architecture)(config).eval().float()
        randomize(model, seed)
        directory = tmp_path_factory.mktemp(f"{architecture}-{seed}")
        model.save_pretrained(directory)
        save_tokenizer(directory, VOCAB_SIZE)
        return ParityCase(model, directory)

    return build


@pytest.fixture(scope="session")
def parity_case(request: pytest.FixtureRequest, new_parity_case: Callable[..., ParityCase]) -> ParityCase:
    """Each architecture and seed in turn."""
    architecture, seed = request.param
    return new_parity_case(architecture, seed)


def random_config(architecture: str, seed: int) -> dict[str, Any]:
    """Arguments of the architecture's transformers config."""
    draw = random.Random(f"{architecture} {seed}")
    num_heads = draw.choice((4, 6, 8))
    num_kv_heads = draw.choice([count for count in (1, 2, 3, num_heads) if num_heads % count == 0])
    num_layers = draw.choice((2, 3))
    config: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": num_heads * draw.choice((4, 6)),
        "intermediate_size": draw.choice((36, 50)),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": draw.choice((8, 10, 12)),
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "hidden_act": draw.choice(("silu", "gelu", "gelu_pytorch_tanh", "relu")),
        "tie_word_embeddings": (seed + ARCHITECTURES.index(architecture)) % 2 == 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    config |= random_rope(("llama3", "dynamic", "linear", "default")[(seed + ARCHITECTURES.index(architecture)) % 4], draw)
    if architecture == "LlamaForCausalLM":
        config |= {"attention_bias": seed % 2 == 1, "mlp_bias": draw.random() < 0.5}
    elif architecture == "MistralForCausalLM":
        config["sliding_window"] = WINDOW if seed % 2 == 0 else None
    else:
        config |= {"use_sliding_window": seed % 2 == 0, "sliding_window": WINDOW, "max_window_layers": 1}
    if architecture == "Qwen3ForCausalLM":
        config["attention_bias"] = seed % 2 == 1
    return config


def random_rope(kind: str, draw: random.Random) -> dict[str, Any]:
    """Rotary parameters whose scaling starts within the context that the tests use."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": draw.choice((100.0, 10000.0, 1e6))}
    if kind != "default":
        rope["factor"] = draw.choice((1.5, 4.0))
    if kind == "llama3":
        rope |= {
            "low_freq_factor": 1.0, "high_freq_factor": draw.choice((2.0, 4.0)),
            "original_max_position_embeddings": ORIGINAL_CONTEXT,
        }  # fmt: skip
    if kind == "dynamic":
        return {"rope_parameters": rope, "max_position_embeddings": ORIGINAL_CONTEXT}
    return {"rope_parameters": rope}


def save_tokenizer(directory: Path, vocab_size: int) -> None:
    """A tokenizer of words `w0`, `w1`, ..., so that the checkpoint can be served."""
    words = tokenizers.models.WordLevel({f"w{index}": index for index in range(vocab_size)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.fixture
def prompt() -> list[int]:
    """Token ids longer than every window and every original context."""
    return torch.randint(VOCAB_SIZE, (48,), generator=torch.Generator().manual_seed(7)).tolist()
