"""Models whose linears are kept for GPUs compute by the Triton kernels what their codes say."""

import pytest
import torch

from actorllm.layers.shard import Shard
from actorllm.testing.tiny import TinyCache, logits_of
from actorllm.weights.compact import CompactFormat
from actorllm.weights.formats import PlainFormat
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module
from actorllm_kernels import linear
from actorllm_kernels.linear import WeightOnly
from actorllm_llama.llama import LlamaForCausalLM

triton = pytest.importorskip("actorllm_kernels.linear.triton", exc_type=ImportError, reason="needs Triton")

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize("num_bits", [8, 4])
def test_a_model_computes_with_the_kernel_what_its_codes_say(num_bits, monkeypatch):
    def logits() -> torch.Tensor:
        model = LlamaForCausalLM(LlamaForCausalLM.config_class.from_hf(CONFIG), Shard())
        storage = CompactFormat(PlainFormat(), WeightOnly(num_bits), table_form=WeightOnly(8))
        load_module(model, RandomWeights(3, std=0.2, storage=storage))
        return logits_of(model, TinyCache(model.cache_groups, num_rows=1, context=32), [(0, list(range(9)))])

    expected, calls, real = logits(), [], triton.linear_weight_only
    monkeypatch.setattr(linear, "takes_triton", lambda operator, x, form: operator == "linear")
    monkeypatch.setattr(triton, "linear_weight_only", lambda x, weight: calls.append(weight) or real(x, weight))
    torch.testing.assert_close(logits(), expected, atol=1e-4, rtol=1e-4)
    assert len(calls) == 2 * 4 + 1 and sum(weight.is_packed for weight in calls) == (2 * 4 if num_bits == 4 else 0)
