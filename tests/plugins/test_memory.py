"""Memory of a cached token, as the pool really takes it, beside what the architecture's definition asks for.

The definition is read from transformers' config of the same values, or written down here where transformers has none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers

from actorllm.cache.sizing import slots_needed
from actorllm.execution.kv_pool import KVPool
from actorllm.layers.shard import Shard
from actorllm.models.catalog import Catalog
from actorllm.testing.model_checks import tiny_config

LENGTH = 48
"""Tokens of the one sequence whose cache is measured."""

WINDOW = 9
SMALL_WINDOWS: Mapping[str, Mapping[str, Any]] = {
    "Gemma2ForCausalLM": {"sliding_window": WINDOW},
    "Gemma3ForCausalLM": {"sliding_window": WINDOW, "sliding_window_pattern": 2},
    "GptOssForCausalLM": {"sliding_window": WINDOW},
    "MistralForCausalLM": {"sliding_window": WINDOW},
    "MixtralForCausalLM": {"sliding_window": WINDOW},
    "Phi3ForCausalLM": {"sliding_window": WINDOW},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Qwen3ForCausalLM": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Qwen3MoeForCausalLM": {"use_sliding_window": True, "sliding_window": WINDOW},
}
"""Settings that make windows shorter than the sequence."""

NOT_IN_TRANSFORMERS = {
    "BaiChuanForCausalLM": lambda config: [2 * config["hidden_size"]] * config["num_hidden_layers"],
    "BaichuanForCausalLM": lambda config: [2 * config["hidden_size"]] * config["num_hidden_layers"],
    "ChatGLMForConditionalGeneration": lambda config: [_chatglm_values(config)] * config["num_layers"],
    "ChatGLMModel": lambda config: [_chatglm_values(config)] * config["num_layers"],
    "EchoForCausalLM": lambda config: [3] * config["num_hidden_layers"],
    "InternLM2ForCausalLM": lambda config: [_grouped_values(config)] * config["num_hidden_layers"],
    "MiniCPMForCausalLM": lambda config: [_grouped_values(config)] * config["num_hidden_layers"],
}
"""Values of a token in each layer, by the config's own keys."""


def _grouped_values(config: Mapping[str, Any]) -> int:
    return 2 * config["num_key_value_heads"] * config["hidden_size"] // config["num_attention_heads"]


def _chatglm_values(config: Mapping[str, Any]) -> int:
    return 2 * config["multi_query_group_num"] * config["kv_channels"]


@dataclass(frozen=True)
class Memory:
    """Bytes for each token of a sequence in bfloat16: `taken` by the pool, by the definition, and with every head of
    every layer kept for every token."""

    architecture: str
    taken: float
    defined: float
    unsaved: float

    def __str__(self) -> str:
        saving = f"  {self.unsaved / self.taken:.1f}x less than {self.unsaved:.0f}" if self.taken < self.unsaved else ""
        return f"{self.architecture:<32} {self.taken:>7.1f} B a token, defined {self.defined:>7.1f}{saving}"


@dataclass
class Definition:
    """What an architecture's config says of its cache, by transformers' names."""

    architecture: str
    config: Mapping[str, Any]

    @cached_property
    def theirs(self) -> Any:
        settings = {key: value for key, value in self.config.items() if key not in ("architectures", "model_type")}
        return transformers.AutoConfig.for_model(self.config["model_type"], **settings).get_text_config()

    def values(self) -> list[int]:
        """Values of a token in each layer."""
        if self.architecture in NOT_IN_TRANSFORMERS:
            return NOT_IN_TRANSFORMERS[self.architecture](self.config)
        rank = getattr(self.theirs, "kv_lora_rank", None)
        values = rank + self.theirs.qk_rope_head_dim if rank else 2 * self._kv_heads() * self._head_dim()
        return [values] * self.theirs.num_hidden_layers

    def unsaved_values(self) -> list[int]:
        """The same with the keys and values of all KV heads."""
        if getattr(self.theirs, "kv_lora_rank", None):
            head = self.theirs.qk_nope_head_dim + self.theirs.qk_rope_head_dim + self.theirs.v_head_dim
            return [self.theirs.num_attention_heads * head] * self.theirs.num_hidden_layers
        return self.values()

    def windows(self) -> list[int | None]:
        """Each layer's window."""
        if self.architecture in NOT_IN_TRANSFORMERS:
            return [None] * len(self.values())
        window = getattr(self.theirs, "sliding_window", None)
        kinds = getattr(self.theirs, "layer_types", None) or ["sliding_attention"] * self.theirs.num_hidden_layers
        return [window if kind == "sliding_attention" else None for kind in kinds]

    def _kv_heads(self) -> int:
        if getattr(self.theirs, "multi_query", False) and not getattr(self.theirs, "new_decoder_architecture", False):
            return 1
        names = ("num_key_value_heads", "num_kv_heads", "num_attention_heads")
        return next(count for name in names if (count := getattr(self.theirs, name, None)))

    def _head_dim(self) -> int:
        return getattr(self.theirs, "head_dim", None) or self.theirs.hidden_size // self.theirs.num_attention_heads


def measured(architecture: str) -> Memory:
    """One sequence of `LENGTH` tokens that decodes, in a real pool that has just the slots it needs."""
    model_class = Catalog.discover().load(architecture)
    config = {**tiny_config(model_class, architecture), **SMALL_WINDOWS.get(architecture, {})}
    groups = model_class(model_class.config_class.from_hf(config), Shard()).cache_groups
    slots = [slots_needed(LENGTH, group.window, 1) for group in groups]
    pool = KVPool(groups, slots, dtype=torch.bfloat16, device=torch.device("cpu"))
    definition = Definition(architecture, config)
    kept = [LENGTH if window is None else min(LENGTH, window + 1) for window in definition.windows()]
    defined = sum(2 * values * count for values, count in zip(definition.values(), kept, strict=True))
    unsaved = definition.values() if architecture in NOT_IN_TRANSFORMERS else definition.unsaved_values()
    return Memory(architecture, pool.num_bytes() / LENGTH, defined / LENGTH, 2.0 * sum(unsaved))


def test_a_cached_token_takes_what_its_definition_asks_for(show_table: Callable[[str], None]) -> None:
    memories = [measured(plugin.architecture) for plugin in Catalog.discover().plugins]
    show_table("\n".join(map(str, memories)))
    assert {memory.architecture: memory.taken for memory in memories} == {memory.architecture: memory.defined for memory in memories}
    saving = {memory.architecture for memory in memories if memory.taken < memory.unsaved}
    always = {"Gemma2ForCausalLM", "Gemma3ForCausalLM", "GptOssForCausalLM", "DeepseekV2ForCausalLM"}
    assert set(SMALL_WINDOWS) | always <= saving
