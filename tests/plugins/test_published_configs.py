"""Each real config.json is served by the installed plugin of its architecture, or refused by an error that says what is missing."""

import json

import torch

from actorllm.errors import ActorLLMError, PluginMissing, UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.models.catalog import find_model
from actorllm.weights.stored import stored_format

SERVED = {
    "Qwen--Qwen3-0.6B", "Qwen--Qwen3-8B", "Qwen--Qwen3-30B-A3B", "Qwen--Qwen3-Coder-480B-A35B-Instruct", "atom-7b-llama2",
    "mistralai--Mixtral-8x22B-v0.1", "mistralai--Mixtral-8x7B-v0.1", "openai--gpt-oss-20b",
}  # fmt: skip
REFUSED = {"Qwen--Qwen3-32B-FP8": UnsupportedConfig}
"""What has a plugin and is refused; the others have none."""


def outcome(config) -> type[ActorLLMError] | None:
    """The error that a config meets before any weight is read; None if there is none."""
    try:
        model_class = find_model(config["architectures"][0])
        stored_format(config)
        parsed = model_class.config_class.from_hf(config)
        with torch.device("meta"):
            model_class(model_class.for_context(parsed, parsed.context_len), Shard())
    except ActorLLMError as error:
        return type(error)
    return None


def test_served_or_refused(data_dir) -> None:
    paths = sorted((data_dir / "configs").glob("*/config.json"))
    outcomes = {path.parent.name: outcome(json.loads(path.read_text())) for path in paths}
    assert {name for name, error in outcomes.items() if error is None} == SERVED
    assert {name: error for name, error in outcomes.items() if error not in (None, PluginMissing)} == REFUSED
