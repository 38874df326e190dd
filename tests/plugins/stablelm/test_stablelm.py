"""StableLM holds the conformance kit, and reads what is published."""

import pytest
import transformers

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.model_checks import model_checks
from actorllm_stablelm.stablelm import StableLmForCausalLM

TINY = {
    "architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "vocab_size": 96, "hidden_size": 64,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "layer_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "partial_rotary_factor": 0.25, "use_qkv_bias": False, "qk_layernorm": False,
    "use_parallel_residual": False,
}  # fmt: skip
# What the published files hold beside sizes.
PUBLISHED = {
    "stablelm-3b-4e1t": {
        "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 6912, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 2, "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": False, "use_qkv_bias": False,
        "vocab_size": 50304,
    },
    "stablelm-2-12b": {
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_dropout": 0.0, "hidden_size": 5120, "intermediate_size": 13824,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 2,
        "num_key_value_heads": 8, "partial_rotary_factor": 0.25, "qk_layernorm": True, "rope_scaling": None,
        "rope_theta": 10000, "tie_word_embeddings": False, "use_parallel_residual": True, "use_qkv_bias": False,
        "vocab_size": 100352,
    },
}  # fmt: skip

test_stablelm = model_checks(StableLmForCausalLM, TINY)
test_stablelm_2_12b = model_checks(StableLmForCausalLM, TINY | {"qk_layernorm": True, "use_parallel_residual": True})


def read(base=TINY, **changes):
    config = {key: value for key, value in (base | changes).items() if value != "absent"}
    return StableLmForCausalLM.config_class.from_hf(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_mean_what_transformers_takes(name):
    theirs = transformers.StableLmConfig(**PUBLISHED[name])
    ours = read(PUBLISHED[name])
    assert (ours.vocab_size, ours.num_heads, ours.num_kv_heads, ours.is_tied, ours.norm_eps, ours.has_qkv_bias) == (
        theirs.vocab_size, theirs.num_attention_heads, theirs.num_key_value_heads, theirs.tie_word_embeddings,
        theirs.layer_norm_eps, theirs.use_qkv_bias,
    )  # fmt: skip
    assert (ours.has_qk_norm, ours.is_parallel) == (theirs.qk_layernorm, theirs.use_parallel_residual)
    assert ours.rotary.rotary_dim == ours.head_dim * theirs.rope_parameters["partial_rotary_factor"]
    StableLmForCausalLM(ours, Shard())


def test_absent_keys_have_transformers_defaults():
    parsed = read(partial_rotary_factor="absent", layer_norm_eps="absent", use_qkv_bias="absent")
    assert (parsed.rotary.rotary_dim, parsed.norm_eps, parsed.has_qkv_bias) == (4, 1e-5, False)
    assert read(num_attention_heads=32, num_key_value_heads="absent", partial_rotary_factor=1.0).num_kv_heads == 32


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"attention_bias": True}, "attention_bias"),
        ({"sliding_window": 4}, "sliding_window"),
        ({"partial_rotary_factor": 0.1}, "pairs"),
        ({"use_parallel_residual": "yes"}, "use_parallel_residual"),
        ({"num_key_value_heads": 3}, "3 key/value heads"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        StableLmForCausalLM(read(**changes), Shard())
