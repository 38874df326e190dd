"""Writes a trained model as a Hugging Face folder: weights in float16, config, tokenizer, generation defaults, the options of
its training, and the loss plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from examples.train_demo.llama import Size
from examples.train_demo.plot import loss_plot
from examples.train_demo.vocabulary import BEGIN_ID, END_ID, tokenizer_config

# A small model's unlikely tokens are mostly mistakes: hence so low a top_p.
GENERATION = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "do_sample": True, "temperature": 0.7, "top_p": 0.5}


def write(
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    size: Size,
    tokenizer: Tokenizer,
    recipe: Mapping[str, object],
    losses: Sequence[tuple[int, float]],
) -> None:
    """Write every file but the model card, which people write. `losses` are (step, loss)."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: weight.cpu().to(torch.float16).contiguous() for name, weight in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for name, content in (
        ("config.json", size.to_hf()),
        ("generation_config.json", GENERATION),
        ("tokenizer_config.json", tokenizer_config(size.context_len)),
        ("training.json", recipe),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    if losses:
        (folder / "loss.svg").write_text(loss_plot(losses))
