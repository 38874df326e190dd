"""MiniCPM holds the conformance kit, and reads what is published."""

import pytest

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.model_checks import model_checks
from actorllm_minicpm.minicpm import MiniCPMForCausalLM

TINY = {
    "architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "vocab_size": 96, "hidden_size": 32,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16,
}  # fmt: skip
# What the published files hold beside sizes.
MINICPM_2B = {
    "_name_or_path": "openbmb/CPM-2B", "architectures": ["MiniCPMForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 2304, "initializer_range": 0.1, "intermediate_size": 5760,
    "max_position_embeddings": 4096, "num_attention_heads": 36, "num_hidden_layers": 40, "num_key_value_heads": 36,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "torch_dtype": "bfloat16", "transformers_version": "4.36.0",
    "use_cache": True, "vocab_size": 122753, "scale_emb": 12, "dim_model_base": 256, "scale_depth": 1.4,
}  # fmt: skip
MINICPM4_8B = {
    "architectures": ["MiniCPMForCausalLM"], "bos_token_id": 1, "eos_token_id": [2, 73440], "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.1, "intermediate_size": 16384, "max_position_embeddings": 32768,
    "model_type": "minicpm", "num_attention_heads": 32, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "vocab_size": 73448, "scale_emb": 12, "dim_model_base": 256, "scale_depth": 1.4,
    "mup_denominator": 32, "tie_word_embeddings": False, "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "longrope", "long_factor": [1.5] * 64, "short_factor": [1.2] * 64, "original_max_position_embeddings": 32768,
    },
}  # fmt: skip

test_minicpm = model_checks(MiniCPMForCausalLM, TINY)
test_minicpm_with_a_head_of_its_own = model_checks(MiniCPMForCausalLM, TINY | {"tie_word_embeddings": False, "attention_bias": True})


def read(base=TINY, **changes):
    config = {key: value for key, value in (base | changes).items() if value != "absent"}
    return MiniCPMForCausalLM.config_class.from_hf(config)


def test_published_files():
    ours = read(MINICPM_2B)
    assert (ours.embedding_scale, ours.residual_scale, ours.base_width) == (12.0, pytest.approx(1.4 / 40**0.5), 256)
    assert (ours.is_tied, ours.head_dim, ours.context_len, ours.norm_eps) == (True, 64, 4096, 1e-5)
    ours = read(MINICPM4_8B)
    assert (ours.is_tied, ours.num_kv_heads, ours.context_len, ours.rotary.type.is_long) == (False, 2, 32768, False)
    assert ours.rotary.for_context(32769).type.is_long
    MiniCPMForCausalLM(ours, Shard())


def test_absent_keys_have_the_published_defaults():
    absent = ("scale_emb", "scale_depth", "dim_model_base", "max_position_embeddings", "num_key_value_heads")
    parsed = read(**dict.fromkeys(absent, "absent"))
    assert (parsed.embedding_scale, parsed.residual_scale, parsed.base_width) == (1.0, pytest.approx(2**-0.5), 1)
    assert (parsed.context_len, parsed.num_kv_heads, parsed.is_tied) == (2048, 4, True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts": 8, "num_experts_per_tok": 2}, "num_experts"),
        ({"sparse_config": {"kernel_size": 32}}, "sparse_config"),
        ({"scale_emb": 0}, "scale_emb"),
        ({"scale_depth": "deep"}, "scale_depth"),
        ({"dim_model_base": 0.5}, "dim_model_base"),
        ({"kv_lora_rank": 256}, "kv_lora_rank"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)
