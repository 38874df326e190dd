"""Kernels are checked for just the heads that they will be asked for, whatever the architecture."""

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from actorllm.execution.served_heads import served_heads
from actorllm.models.catalog import find_model
from actorllm.testing.model_checks import ModelCase, tiny_config
from actorllm.testing.tiny import TinyCache, logits_of, on_thread_ranks
from actorllm_kernels import attention, rotary_store
from actorllm_kernels.backends import Heads
from tests.house.architecture_table import checkout_catalog

ARCHITECTURES = [plugin.architecture for plugin in checkout_catalog(Path(__file__).resolve().parents[2]).plugins]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[Heads]]:
    """What operators ask kernels for, as they would on a GPU."""
    heads: dict[str, set[Heads]] = defaultdict(set)
    for operator in (attention, rotary_store):
        monkeypatch.setattr(operator, "takes_triton", lambda name, x, form: heads[name].add(form))
        monkeypatch.setattr(operator.cpu, "suits", lambda *_: False)
    return heads


@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_they_are_what_a_step_asks_for(architecture: str, kv_dtype: torch.dtype | None, asked: dict[str, set[Heads]]) -> None:
    model_class = find_model(architecture)
    model = ModelCase(model_class, tiny_config(model_class, architecture)).build()
    logits_of(model, TinyCache(model.cache_groups, num_rows=1, context=8, kv_dtype=kv_dtype), [(0, [1, 2, 3])])
    assert served_heads(model, kv_dtype) == asked
    assert asked or architecture == "EchoForCausalLM"


def test_ranks_have_their_own_share(asked: dict[str, set[Heads]]) -> None:
    model_class = find_model("LlamaForCausalLM")
    case = ModelCase(model_class, tiny_config(model_class, "LlamaForCausalLM"))

    def found(shard):
        model = case.build(shard=shard)
        logits_of(model, TinyCache(model.cache_groups, num_rows=1, context=8), [(0, [1, 2])])
        return served_heads(model, None)

    whole = served_heads(case.build(), None)
    for served in on_thread_ranks(2, found):
        assert served == asked and served["attention"] != whole["attention"]
