"""Mixtral holds the conformance kit, and reads real configs."""

import json

import pytest

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.model_checks import model_checks
from actorllm_mixtral.mixtral import MixtralForCausalLM

TINY = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "head_dim": 8, "hidden_act": "silu", "tie_word_embeddings": False, "sliding_window": 9,
    "num_local_experts": 5, "num_experts_per_tok": 2,
}  # fmt: skip

test_mixtral = model_checks(MixtralForCausalLM, TINY)


def read(**changes):
    config = {key: value for key, value in (TINY | changes).items() if value != "absent"}
    return MixtralForCausalLM.config_class.from_hf(config)


@pytest.mark.parametrize("name", ["mistralai--Mixtral-8x7B-v0.1", "mistralai--Mixtral-8x22B-v0.1"])
def test_real_configs_are_served(data_dir, name):
    parsed = MixtralForCausalLM.config_class.from_hf(json.loads((data_dir / "configs" / name / "config.json").read_text()))
    assert (parsed.routing.num_experts, parsed.routing.top_k, parsed.routing.is_normalised) == (8, 2, True)
    assert (parsed.num_kv_heads, parsed.head_dim, parsed.rotary.theta, set(parsed.windows)) == (8, 128, 1e6, {None})
    MixtralForCausalLM(parsed, Shard())


def test_absent_keys_have_the_published_defaults():
    parsed = read(num_local_experts="absent", num_experts_per_tok="absent", rms_norm_eps="absent", rope_theta="absent")
    assert (parsed.routing.num_experts, parsed.routing.top_k, parsed.norm_eps, parsed.rotary.theta) == (8, 2, 1e-5, 1e6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts_per_tok": 6}, "6 experts"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ({"num_local_experts": 0}, "num_local_experts"),
        ({"num_local_experts": "8"}, "num_local_experts"),
        ({"attention_bias": True}, "attention_bias"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"n_shared_experts": 1}, "n_shared_experts"),
        ({"hidden_act": "relu6"}, "relu6"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)


def test_training_keys_are_neutral():
    read(router_jitter_noise=0.1, router_aux_loss_coef=0.02, output_router_logits=True)
