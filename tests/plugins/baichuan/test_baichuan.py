"""Baichuan holds the conformance kit, reads what is published, and tells 7B and 13B, first and second generation apart."""

import pytest

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.models.catalog import find_model
from actorllm.testing.model_checks import model_checks
from actorllm_baichuan.baichuan import BaichuanForCausalLM

TINY_13B = {"architectures": ["BaichuanForCausalLM"], **BaichuanForCausalLM.example_config}
TINY_7B = {key: value for key, value in TINY_13B.items() if key != "model_max_length"} | {"max_position_embeddings": 64}
# What the published files hold beside sizes.
FIRST = {
    "auto_map": {"AutoConfig": "configuration_baichuan.BaichuanConfig"}, "model_type": "baichuan", "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-06,
    "num_hidden_layers": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 64000,
}  # fmt: skip
SIZES_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "max_position_embeddings": 4096}
SIZES_13B = {"hidden_size": 5120, "intermediate_size": 13696, "num_attention_heads": 40, "model_max_length": 4096}
SECOND = FIRST | {"_from_model_config": True, "vocab_size": 125696, "z_loss_weight": 0, "architectures": ["BaichuanForCausalLM"]}
PUBLISHED = {
    "Baichuan-7B": (FIRST | SIZES_7B | {"architectures": ["BaiChuanForCausalLM"]}, False, False),
    "Baichuan-13B": (FIRST | SIZES_13B | {"architectures": ["BaichuanForCausalLM"], "_from_model_config": True}, True, False),
    "Baichuan2-7B": (SECOND | SIZES_7B | {"model_max_length": 4096}, False, True),
    "Baichuan2-13B": (SECOND | SIZES_13B, True, True),
}

test_baichuan_2_13b = model_checks(BaichuanForCausalLM, TINY_13B)
test_baichuan_2_7b = model_checks(BaichuanForCausalLM, TINY_7B)
test_baichuan_13b = model_checks(BaichuanForCausalLM, TINY_13B | {"z_loss_weight": None, "num_attention_heads": 6, "hidden_size": 48})


def read(base=TINY_13B, **changes):
    config = {key: value for key, value in (base | changes).items() if value != "absent"}
    return BaichuanForCausalLM.config_class.from_hf(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files(name):
    published, has_alibi, has_normalised_head = PUBLISHED[name]
    ours = read(published)
    assert (ours.has_alibi, ours.has_normalised_head) == (has_alibi, has_normalised_head)
    assert (ours.context_len, ours.num_kv_heads, ours.head_dim, ours.is_tied) == (4096, ours.num_heads, 128, False)
    assert find_model(published["architectures"][0]) is BaichuanForCausalLM
    BaichuanForCausalLM(ours, Shard())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_max_length": "absent"}, "max_position_embeddings"),
        ({"hidden_size": 4096}, "contradict"),
        ({"hidden_size": 5120, "max_position_embeddings": 4096}, "contradict"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"attention_bias": True}, "attention_bias"),
        ({"model_max_length": "long"}, "model_max_length"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)
