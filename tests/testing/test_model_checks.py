"""The conformance kit passes sound plugins, and names the fault of broken ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actorllm.layers.batch import Batch
from actorllm.layers.rotary import RotaryTables
from actorllm.layers.shard import Shard
from actorllm.models.contract import CausalLM
from actorllm.testing.model_checks import ModelCase, model_checks, run_checks
from actorllm_llama.llama import LlamaConfig, LlamaForCausalLM
from actorllm_llama.mistral import MistralForCausalLM
from actorllm_llama.qwen2 import Qwen2ForCausalLM
from actorllm_llama.qwen3 import Qwen3ForCausalLM

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "head_dim": 8,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 9}
del MISTRAL["attention_bias"]
QWEN2 = {
    **MISTRAL,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "use_sliding_window": True,
    "max_window_layers": 1,
}
del QWEN2["head_dim"]
QWEN3 = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8, "attention_bias": False}

test_llama = model_checks(LlamaForCausalLM, LLAMA)
test_mistral = model_checks(MistralForCausalLM, MISTRAL)
test_qwen2 = model_checks(Qwen2ForCausalLM, QWEN2)
test_qwen3 = model_checks(Qwen3ForCausalLM, QWEN3)


class WrongRopeBase(LlamaForCausalLM):
    """Ignores the config's rope_theta."""

    def prepare(self, batch: Batch) -> RotaryTables:
        return replace(self.config.rotary, theta=10000.0).tables(batch.positions_T, torch.float32)


class WrongEps(LlamaForCausalLM):
    """Ignores the config's eps."""

    def __init__(self, config: LlamaConfig, shard: Shard) -> None:
        super().__init__(replace(config, norm_eps=1e-6), shard)


class ShiftedQueries(LlamaForCausalLM):
    """Positions are off by one while decoding."""

    def prepare(self, batch: Batch) -> RotaryTables:
        is_decode = len(batch.positions_T) == len(batch.spans)
        return self.config.rotary.tables(batch.positions_T + is_decode, torch.float32)


class LeakBetweenRows(LlamaForCausalLM):
    """Adds the batch's mean to every token."""

    def embed(self, batch: Batch) -> Tensor:
        state = super().embed(batch)
        starts = torch.tensor([span.start for span in batch.spans])
        return state + state[starts].mean(0) - state[starts[:1]]


class WrongShard(LlamaForCausalLM):
    """Every rank takes the first rank's part of the MLP."""

    def __init__(self, config: LlamaConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        for layer in self.model.layers:
            layer.mlp.down.cols = Shard(0, shard.num_ranks).span(config.intermediate_size)


class IgnoredWindow(MistralForCausalLM):
    """Attends to everything although the config has a window."""

    def __init__(self, config: LlamaConfig, shard: Shard) -> None:
        super().__init__(replace(config, windows=(None,) * config.num_layers), shard)


class MissingScale(LlamaForCausalLM):
    """Forgets 1/sqrt(head_dim)."""

    def __init__(self, config: LlamaConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        for layer in self.model.layers:
            layer.self_attn.attention.scale = 1.0


class UntiedHead(LlamaForCausalLM):
    """Pulls a head although the config ties it."""

    def __init__(self, config: LlamaConfig, shard: Shard) -> None:
        super().__init__(replace(config, is_tied=False), shard)


class UnclaimedTensor(LlamaForCausalLM):
    """Has no place for the last norm."""

    def __init__(self, config: LlamaConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        self.model.norm = nn.Identity()

    def prepare(self, batch: Batch) -> RotaryTables:
        return self.config.rotary.tables(batch.positions_T, torch.float32)


class PulledTwice(LlamaForCausalLM):
    """Loads the gate's rows as the other input of the MLP as well."""

    def __init__(self, config: LlamaConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        for layer in self.model.layers:
            layer.mlp.gate_up.claims = (layer.mlp.gate_up.claims[0],) * 2


class RowsForgotten(LlamaForCausalLM):
    """Leaves the last rows of the head in the checkpoint."""

    def __init__(self, config: LlamaConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        self.lm_head.rows = (0, config.vocab_size - 1)


class KeptState(LlamaForCausalLM):
    """Remembers the last call's embedding."""

    kept: Tensor | None = None

    def embed(self, batch: Batch) -> Tensor:
        state = super().embed(batch)
        mixed = state if self.kept is None else state + 0.1 * self.kept
        self.kept = state[-1]
        return mixed


class RaisesInEmbed(LlamaForCausalLM):
    """Has a slip of the pen in its forward pass."""

    def embed(self, batch: Batch) -> Tensor:
        return super().embed(batch).nonsense


BROKEN: list[tuple[type[CausalLM], dict[str, Any], str, str]] = [
    (WrongRopeBase, LLAMA, "transformers", "rope_theta = 100.0"),
    (WrongEps, LLAMA, "transformers", "rms_norm_eps = 0.5"),
    (ShiftedQueries, LLAMA, "chunking", "in chunks of [7, 1, 13]"),
    (LeakBetweenRows, LLAMA, "batch", "rows leak into each other"),
    (WrongShard, LLAMA, "two_ranks", "a shard is wrong"),
    (IgnoredWindow, MISTRAL, "transformers", "sliding_window = 5"),
    (MissingScale, LLAMA, "transformers", "attention's scale is wrong"),
    (UntiedHead, LLAMA, "transformers", "tie_word_embeddings = True: the checkpoint has no tensor 'lm_head.weight'"),
    (UnclaimedTensor, LLAMA, "claims_all", "has no place for: model.norm.weight"),
    (PulledTwice, LLAMA, "claims_once", "claimed more than once: model.layers.0.mlp.gate_proj.weight"),
    (RowsForgotten, LLAMA, "claims_once", "some rows are never read: lm_head.weight"),
    (KeptState, LLAMA, "repeatable", "state is kept"),
    (RaisesInEmbed, LLAMA, "repeatable", "raised AttributeError: 'Tensor' object has no attribute 'nonsense' (test_model_checks.py, line "),
    (RaisesInEmbed, LLAMA, "two_ranks", "no attribute 'nonsense' (test_model_checks.py, line "),
]


@pytest.mark.parametrize(("model_class", "config", "check", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_plugin_is_caught_by_the_check_that_names_its_fault(
    model_class: type[CausalLM], config: dict[str, Any], check: str, words: str
) -> None:
    reasons = {result.name: result.reason for result in run_checks(ModelCase(model_class, config))}
    assert words in reasons[check], reasons
