"""InternLM2 holds the conformance kit, and reads what is published."""

import pytest

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.model_checks import model_checks
from actorllm_internlm.internlm2 import InternLM2ForCausalLM

TINY = {
    "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "vocab_size": 96, "hidden_size": 32,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "bias": False,
    "max_position_embeddings": 64, "rope_theta": 10000, "rope_scaling": {"type": "dynamic", "factor": 2.0},
}  # fmt: skip
# What the published file holds beside sizes.
INTERNLM2_5_7B = {
    "architectures": ["InternLM2ForCausalLM"], "attn_implementation": "eager", "bias": False, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "internlm2", "num_attention_heads": 32, "num_hidden_layers": 2,
    "num_key_value_heads": 8, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0}, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.41.0", "use_cache": True, "vocab_size": 92544,
}  # fmt: skip

test_internlm2 = model_checks(InternLM2ForCausalLM, TINY)
test_internlm2_with_biases_and_one_group = model_checks(InternLM2ForCausalLM, TINY | {"bias": True, "num_key_value_heads": 1})


def read(base=TINY, **changes):
    config = {key: value for key, value in (base | changes).items() if value != "absent"}
    return InternLM2ForCausalLM.config_class.from_hf(config)


def test_the_published_file():
    ours = read(INTERNLM2_5_7B)
    assert (ours.num_heads, ours.num_kv_heads, ours.head_dim, ours.norm_eps) == (32, 8, 128, 1e-5)
    assert (ours.has_qkv_bias, ours.has_output_bias, ours.is_tied) == (False, False, False)
    assert (ours.rotary.theta, ours.rotary.type.name, ours.context_len) == (1e6, "dynamic", 65536)
    InternLM2ForCausalLM(ours, Shard())


def test_absent_keys_have_the_published_defaults():
    parsed = read(bias="absent", num_key_value_heads="absent", max_position_embeddings="absent", rope_scaling="absent")
    assert (parsed.has_qkv_bias, parsed.has_output_bias, parsed.has_mlp_bias) == (True, True, False)
    assert (parsed.num_kv_heads, parsed.context_len, parsed.norm_eps) == (4, 2048, 1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"bias": "yes"}, "bias"),
        ({"rope_scaling": {"type": "dynamic"}}, "factor"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "ntk"),
        ({"sliding_window": 4}, "sliding_window"),
        ({"reward_token_id": 92527}, "reward_token_id"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)
