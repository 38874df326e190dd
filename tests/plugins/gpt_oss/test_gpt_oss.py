"""gpt-oss holds the conformance kit, and reads the published config."""

import json

import pytest
from transformers import GptOssConfig

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.model_checks import model_checks
from actorllm_gpt_oss.gpt_oss import GptOssForCausalLM

YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "beta_fast": 4.0, "beta_slow": 1.0}
TINY = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 1000.0, "rope_scaling": YARN, "tie_word_embeddings": False, "sliding_window": 9,
    "attention_bias": True, "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 1.0,
}  # fmt: skip

test_gpt_oss = model_checks(GptOssForCausalLM, TINY)


def read(**changes):
    config = {key: value for key, value in (TINY | changes).items() if value != "absent"}
    return GptOssForCausalLM.config_class.from_hf(config)


def test_the_published_config_is_served(data_dir):
    config = json.loads((data_dir / "configs" / "openai--gpt-oss-20b" / "config.json").read_text())
    parsed = GptOssForCausalLM.config_class.from_hf(config)
    assert (parsed.routing.num_experts, parsed.routing.top_k, parsed.routing.is_normalised) == (32, 4, True)
    assert (parsed.num_heads, parsed.num_kv_heads, parsed.head_dim, parsed.context_len) == (64, 8, 64, 131072)
    assert parsed.windows == (128, None) * 12 and parsed.swiglu_limit == 7.0
    assert (parsed.rotary.type.name, parsed.rotary.type.truncate, parsed.rotary.theta) == ("yarn", False, 150000)
    assert parsed.has_qkv_bias and parsed.has_output_bias
    [window, full] = GptOssForCausalLM(parsed, Shard()).cache_groups
    assert (window.window, len(window.layers), full.window, len(full.layers)) == (128, 12, None, 12)


def test_absent_keys_mean_what_transformers_takes():
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    parsed = GptOssForCausalLM.config_class.from_hf({name: TINY[name] for name in names})
    theirs = GptOssConfig(**{name: TINY[name] for name in names})
    assert (parsed.num_heads, parsed.num_kv_heads, parsed.head_dim) == (
        theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim,
    )  # fmt: skip
    assert (parsed.norm_eps, parsed.is_tied, parsed.has_qkv_bias) == (
        theirs.rms_norm_eps, theirs.tie_word_embeddings, theirs.attention_bias,
    )  # fmt: skip
    assert (parsed.routing.num_experts, parsed.routing.top_k) == (theirs.num_local_experts, theirs.num_experts_per_tok)
    assert (parsed.swiglu_limit, parsed.swiglu_alpha) == (theirs.swiglu_limit, theirs.swiglu_alpha)
    assert parsed.windows == tuple(theirs.sliding_window if "sliding" in kind else None for kind in theirs.layer_types)
    rope = theirs.rope_parameters
    assert parsed.rotary.theta == rope["rope_theta"] and parsed.context_len == theirs.max_position_embeddings
    assert {name: getattr(parsed.rotary.type, name) for name in ("factor", "beta_fast", "beta_slow", "truncate")} == {
        name: rope[name] for name in ("factor", "beta_fast", "beta_slow", "truncate")
    }


def test_a_rope_of_its_own_replaces_the_absent_one():
    assert read(rope_scaling="absent", rope_parameters={"rope_type": "default"}).rotary.type.name == "default"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts_per_tok": 5}, "5 experts"),
        ({"experts_per_token": 3}, "experts_per_token"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"swiglu_limit": 0}, "swiglu_limit"),
        ({"swiglu_alpha": -1.0}, "swiglu_alpha"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"n_shared_experts": 1}, "n_shared_experts"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)
