"""Command R holds the conformance kit, and reads what is published."""

import pytest
import transformers

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.model_checks import model_checks
from actorllm_cohere.cohere import CohereForCausalLM

TINY = {
    "architectures": ["CohereForCausalLM"], "model_type": "cohere", "vocab_size": 96, "hidden_size": 32,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "layer_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "use_qk_norm": False, "attention_bias": False, "logit_scale": 0.25, "pad_token_id": 0,
    "bos_token_id": 5, "eos_token_id": 6,
}  # fmt: skip
# What the published files hold beside sizes.
PUBLISHED = {
    "c4ai-command-r-v01": {
        "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 8192,
        "intermediate_size": 22528, "layer_norm_eps": 1e-05, "logit_scale": 0.0625, "max_position_embeddings": 8192,
        "model_max_length": 131072, "num_attention_heads": 64, "num_hidden_layers": 2, "num_key_value_heads": 64,
        "pretraining_tp": 1, "rope_theta": 8000000.0, "use_cache": True, "vocab_size": 256000,
    },
    "c4ai-command-r-plus": {
        "attention_bias": False, "hidden_act": "silu", "hidden_size": 12288, "intermediate_size": 33792,
        "layer_norm_eps": 1e-05, "logit_scale": 0.8333333333333334, "max_position_embeddings": 131072,
        "model_max_length": 131072, "num_attention_heads": 96, "num_hidden_layers": 2, "num_key_value_heads": 8,
        "rope_theta": 75000000.0, "use_qk_norm": True, "vocab_size": 256000,
    },
}  # fmt: skip

test_cohere = model_checks(CohereForCausalLM, TINY)
test_cohere_with_qk_norm = model_checks(CohereForCausalLM, TINY | {"use_qk_norm": True})


def read(base=TINY, **changes):
    config = {key: value for key, value in (base | changes).items() if value != "absent"}
    return CohereForCausalLM.config_class.from_hf(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_mean_what_transformers_takes(name):
    theirs = transformers.CohereConfig(**PUBLISHED[name])
    ours = read(PUBLISHED[name])
    assert (ours.vocab_size, ours.num_heads, ours.num_kv_heads, ours.is_tied, ours.norm_eps, ours.has_qk_norm) == (
        theirs.vocab_size, theirs.num_attention_heads, theirs.num_key_value_heads, theirs.tie_word_embeddings,
        theirs.layer_norm_eps, theirs.use_qk_norm,
    )  # fmt: skip
    assert (ours.logit_scale, ours.rotary.theta) == (theirs.logit_scale, theirs.rope_parameters["rope_theta"])
    assert ours.rotary.is_interleaved
    CohereForCausalLM(ours, Shard())


def test_model_max_length_is_the_context():
    """Command R was made for more tokens than its `max_position_embeddings` says."""
    assert read(PUBLISHED["c4ai-command-r-v01"]).context_len == 131072
    assert read().context_len == 64


def test_absent_keys_have_transformers_defaults():
    absent = dict.fromkeys(
        ("layer_norm_eps", "logit_scale", "tie_word_embeddings", "num_key_value_heads", "rope_theta"), "absent"
    )
    parsed = read(**absent)
    assert (parsed.norm_eps, parsed.logit_scale, parsed.is_tied, parsed.num_kv_heads) == (1e-5, 0.0625, True, 4)
    assert parsed.rotary.theta == transformers.CohereConfig().rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"logit_scale": 0}, "logit_scale"),
        ({"logit_scale": "small"}, "logit_scale"),
        ({"sliding_window": 4}, "sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"model_max_length": "long"}, "model_max_length"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)
