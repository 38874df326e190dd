"""A checkpoint of transformers under other names than its own: those that the authors of a model published."""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"


def rename(directory: Path, published: Callable[[str], str], *, added: Mapping[str, Tensor]) -> set[str]:
    """Rewrite the weights in place with `published` names and `added` tensors; returns the names."""
    tensors = {published(name): tensor for name, tensor in load_file(directory / WEIGHTS).items()} | dict(added)
    save_file(tensors, directory / WEIGHTS)
    return set(tensors)
