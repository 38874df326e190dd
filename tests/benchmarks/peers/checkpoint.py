"""The models of the comparison as Hugging Face folders with random weights, made once. Knows no engine."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor

from tests.benchmarks.peers.shapes import Shape


def make_checkpoint(shape: Shape, folder: Path) -> None:
    """Random bfloat16 weights, unless they are there, and a tokenizer that only names ids."""
    weights = folder / "model.safetensors"
    if weights.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    vocab = {f"w{token_id} ": token_id for token_id in range(shape.vocab_size)}
    Tokenizer(models.WordLevel(vocab, unk_token="w0 ")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    torch.manual_seed(0)
    made = weights.with_suffix(".part")
    save_file(dict(_tensors(shape)), made, metadata={"format": "pt"})
    made.replace(weights)


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """All tensors, bfloat16."""
    return load_file(folder / "model.safetensors")


def _tensors(shape: Shape) -> Iterator[tuple[str, Tensor]]:
    yield "model.embed_tokens.weight", _normal(shape.vocab_size, shape.hidden)
    yield "model.norm.weight", torch.ones(shape.hidden, dtype=torch.bfloat16)
    if not shape.is_tied:
        yield "lm_head.weight", _normal(shape.vocab_size, shape.hidden)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", torch.ones(shape.hidden, dtype=torch.bfloat16)
        for name, (num_outputs, num_inputs) in shape.linears().items():
            yield f"{prefix}{name}.weight", _normal(num_outputs, num_inputs)
            if shape.is_qwen and name.removeprefix("self_attn.") in ("q_proj", "k_proj", "v_proj"):
                yield f"{prefix}{name}.bias", _normal(num_outputs)


def _normal(*sizes: int) -> Tensor:
    return (torch.randn(sizes) * 0.02).to(torch.bfloat16)
