"""Writes a trained model as a Hugging Face folder: weights in float16, config, tokenizer, generation defaults, the options of
its training, and the loss plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from examples.train_demo.llama import Llama
from examples.train_demo.plot import loss_plot
from examples.train_demo.vocabulary import BEGIN_ID, END_ID, tokenizer_config

GENERATION = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "do_sample": True, "temperature": 0.7, "top_p": 0.9}


def write(
    folder: Path, model: Llama, *, tokenizer: Tokenizer, recipe: Mapping[str, object], losses: Sequence[tuple[int, float]]
) -> None:
    """Write every file but the model card, which people write. `losses` are (step, loss)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: parameter.detach().cpu().to(torch.float16).contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for name, content in (
        ("config.json", model.size.to_hf()),
        ("generation_config.json", GENERATION),
        ("tokenizer_config.json", tokenizer_config(model.size.context_len)),
        ("training.json", recipe),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    if losses:
        (folder / "loss.svg").write_text(loss_plot(losses))
