"""Reads what a draft is made from: a model's config.json and the shapes of its tensors, in a folder or on the Hugging Face hub.

Of a model on the hub config.json and the headers of its safetensors files are fetched, no weights and no code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actorllm.errors import SettingsError
from actorllm.execution.model_plan import read_config
from actorllm.models.hub import fetch, fetch_shapes, is_hub_id
from actorllm.weights.checkpoint import tensor_shapes


def read_model(source: str) -> tuple[dict[str, Any], Mapping[str, Sequence[int]]]:
    """config.json of a folder or a hub id, and tensor name -> shape ({} where there are no safetensors files).

    Raises `SettingsError`, `CheckpointError` or `HubError`.
    """
    folder = Path(source)
    if folder.is_dir():
        return read_config(folder), tensor_shapes(folder) if any(folder.glob("*.safetensors")) else {}
    if is_hub_id(source):
        return read_config(fetch(source, ["config.json"])), fetch_shapes(source)
    raise SettingsError(f"--from {source} is neither a folder nor a hub id: give a Hugging Face model folder, or ORG/NAME")
