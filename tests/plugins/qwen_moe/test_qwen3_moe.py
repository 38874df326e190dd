"""Qwen3 with experts holds the conformance kit, and reads real configs."""

import json

import pytest

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.model_checks import model_checks
from actorllm_qwen_moe.qwen3_moe import Qwen3MoeForCausalLM

TINY = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "head_dim": 8, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False,
    "use_sliding_window": True, "sliding_window": 9, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
    "norm_topk_prob": True, "mlp_only_layers": [1], "decoder_sparse_step": 1,
}  # fmt: skip

test_qwen3_moe = model_checks(Qwen3MoeForCausalLM, TINY)
test_plain_top_k = model_checks(Qwen3MoeForCausalLM, TINY | {"norm_topk_prob": False, "mlp_only_layers": [], "decoder_sparse_step": 2})


def read(**changes):
    config = {key: value for key, value in (TINY | changes).items() if value != "absent"}
    return Qwen3MoeForCausalLM.config_class.from_hf(config)


@pytest.mark.parametrize(
    ("name", "num_experts", "expert_size", "num_layers"),
    [("Qwen--Qwen3-30B-A3B", 128, 768, 48), ("Qwen--Qwen3-Coder-480B-A35B-Instruct", 160, 2560, 62)],
)
def test_real_configs_are_served(data_dir, name, num_experts, expert_size, num_layers):
    parsed = Qwen3MoeForCausalLM.config_class.from_hf(json.loads((data_dir / "configs" / name / "config.json").read_text()))
    [routing] = set(parsed.routings)
    assert (routing.num_experts, routing.top_k, routing.is_normalised) == (num_experts, 8, True)
    assert (len(parsed.routings), parsed.expert_size, parsed.head_dim, set(parsed.windows)) == (num_layers, expert_size, 128, {None})
    with_experts = Qwen3MoeForCausalLM(parsed, Shard())
    assert with_experts.layer(0).mlp.experts.sizes.num_experts == num_experts


def layers_with_experts(**changes) -> list[int]:
    return [layer for layer, routing in enumerate(read(**changes).routings) if routing is not None]


def test_which_layers_have_experts():
    assert layers_with_experts() == [0, 2]
    assert layers_with_experts(mlp_only_layers="absent") == [0, 1, 2]
    assert layers_with_experts(mlp_only_layers=[], decoder_sparse_step=2) == [1]
    assert layers_with_experts(mlp_only_layers=[1], decoder_sparse_step=2) == []
    assert layers_with_experts(num_experts=0) == []


def test_the_number_of_experts_has_two_names():
    assert {routing.num_experts for routing in read(num_experts="absent", num_local_experts=4).routings if routing} == {4}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts_per_tok": 7}, "7 experts"),
        ({"mlp_only_layers": [3]}, "mlp_only_layers"),
        ({"mlp_only_layers": 1}, "mlp_only_layers"),
        ({"mlp_only_layers": [True]}, "mlp_only_layers"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({"shared_expert_intermediate_size": 16}, "shared_expert_intermediate_size"),
        ({"use_qk_norm": False}, "use_qk_norm"),
        ({"qkv_bias": True}, "qkv_bias"),
        ({"n_group": 2}, "n_group"),
        ({"moe_intermediate_size": 12.5}, "moe_intermediate_size"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)
