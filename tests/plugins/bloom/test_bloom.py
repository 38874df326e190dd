"""Bloom holds the conformance kit, reads published configs and names."""

import pytest

from actorllm.errors import UnsupportedConfig
from actorllm.testing.against_transformers import load_folder
from actorllm.testing.model_checks import model_checks
from actorllm.testing.reference import reference_logits
from actorllm.testing.tiny import logits_in_chunks
from actorllm_bloom.bloom import BloomForCausalLM
from tests.parity.families.bloom import build
from tests.plugins.published import rename

IDS = list(range(20))
TINY = dict(BloomForCausalLM.example_config)

test_bloom = model_checks(BloomForCausalLM, TINY)

BLOOM_560M = {
    "apply_residual_connection_post_layernorm": False, "architectures": ["BloomForCausalLM"], "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2, "hidden_dropout": 0.0,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "model_type": "bloom", "n_embed": 1024,
    "n_inner": None, "n_layer": 24, "num_attention_heads": 16, "offset_alibi": 100, "pad_token_id": 3, "pretraining_tp": 1,
    "skip_bias_add": True, "skip_bias_add_qkv": False, "slow_but_exact": False, "unk_token_id": 0, "use_cache": True,
    "vocab_size": 250880,
}  # fmt: skip
BLOOM_176B = BLOOM_560M | {
    "n_embed": "absent", "hidden_size": 14336, "n_layer": 70, "num_attention_heads": "absent", "n_head": 112, "pretraining_tp": 4,
    "seq_length": 2048,
}  # fmt: skip


def read(config=TINY, **changes):
    return BloomForCausalLM.config_class.from_hf({key: value for key, value in (config | changes).items() if value != "absent"})


def test_published_configs():
    small, large = read(BLOOM_560M), read(BLOOM_176B)
    assert (small.hidden_size, small.num_heads, small.num_layers, small.head_dim) == (1024, 16, 24, 64)
    assert (large.hidden_size, large.num_heads, large.intermediate_size) == (14336, 112, 57344)
    assert small.context_len == large.context_len == 2048 and small.is_tied


def test_the_context_is_the_one_of_the_file():
    assert read(seq_length=128).context_len == 128


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"some_new_trick": 2}, "some_new_trick"),
        ({"n_head": 5}, "5 heads"),
        ({"n_head": "absent"}, "num_attention_heads"),
        ({"hidden_size": "absent"}, "hidden_size"),
        ({"n_embed": 64}, "n_embed = 64 contradicts hidden_size = 48"),
        ({"n_inner": 100}, "n_inner"),
        ({"seq_length": 0}, "seq_length"),
        ({"apply_residual_connection_post_layernorm": 1}, "apply_residual_connection_post_layernorm"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
        ({"activation_function": "relu"}, "activation_function"),
        ({"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)


def test_names_without_a_prefix(tmp_path):
    reference = build(0, tmp_path)
    names = rename(tmp_path, lambda name: name.removeprefix("transformer."), added={})
    assert {"word_embeddings_layernorm.weight", "h.0.self_attention.query_key_value.bias", "ln_f.weight"} <= names
    expected = reference_logits(reference, IDS)
    got = logits_in_chunks(load_folder(BloomForCausalLM, tmp_path), IDS)
    assert (got - expected).abs().max() < 1e-4 * expected.std()
