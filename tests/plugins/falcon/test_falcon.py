"""Falcon holds the conformance kit in each of its layouts, and reads published configs and names."""

import pytest
import torch
from safetensors.torch import load_file

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.against_transformers import load_folder
from actorllm.testing.model_checks import model_checks
from actorllm.testing.reference import reference_logits
from actorllm.testing.tiny import logits_in_chunks, on_thread_ranks
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module
from actorllm_falcon.falcon import FalconForCausalLM
from tests.parity.families.falcon import build
from tests.plugins.published import WEIGHTS, rename

IDS = list(range(20))
TINY = dict(FalconForCausalLM.example_config)
TINY_40B = {key: value for key, value in TINY.items() if key != "multi_query"}
TINY_40B |= {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2, "rope_theta": 10000.0}
TINY_RW = TINY | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}

test_falcon_7b = model_checks(FalconForCausalLM, TINY | {"parallel_attn": True, "alibi": False})
test_falcon_40b = model_checks(FalconForCausalLM, TINY_40B)
test_falcon_rw = model_checks(FalconForCausalLM, TINY_RW)

FALCON_7B = {
    "alibi": False, "apply_residual_connection_post_layernorm": False, "architectures": ["FalconForCausalLM"],
    "attention_dropout": 0.0, "bias": False, "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": 4544,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "falcon", "multi_query": True,
    "new_decoder_architecture": False, "num_attention_heads": 71, "num_hidden_layers": 32, "parallel_attn": True,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 65024, "auto_map": {"AutoModel": "modeling_falcon.FalconModel"},
}  # fmt: skip
FALCON_40B = FALCON_7B | {
    "hidden_size": 8192, "new_decoder_architecture": True, "num_attention_heads": 128, "num_hidden_layers": 60, "num_kv_heads": 8,
}  # fmt: skip
FALCON_11B = FALCON_40B | {
    "hidden_size": 4096, "num_attention_heads": 32, "num_kv_heads": 8, "num_ln_in_parallel_attn": 1, "ff_factor": 4,
    "ffn_hidden_size": 16384, "activation": "gelu", "max_position_embeddings": 8192, "rope_theta": 500042.0,
    "tie_word_embeddings": False,
}  # fmt: skip
FALCON_RW_1B = FALCON_7B | {
    "alibi": True, "bias": True, "hidden_size": 2048, "multi_query": False, "num_attention_heads": 32, "num_hidden_layers": 24,
    "parallel_attn": False, "vocab_size": 50304,
}  # fmt: skip


def read(config=TINY, **changes):
    return FalconForCausalLM.config_class.from_hf({key: value for key, value in (config | changes).items() if value != "absent"})


def test_published_layouts():
    seven, forty, eleven, rw = map(read, (FALCON_7B, FALCON_40B, FALCON_11B, FALCON_RW_1B))
    assert (seven.num_kv_heads, seven.has_packed_qkv, seven.norms, seven.is_parallel) == (1, False, ("input_layernorm",), True)
    assert (forty.num_kv_heads, forty.has_packed_qkv, forty.norms, forty.is_parallel) == (8, True, ("ln_attn", "ln_mlp"), True)
    assert (eleven.num_kv_heads, eleven.norms, eleven.is_tied) == (8, ("input_layernorm",), False)
    assert (rw.num_kv_heads, rw.has_packed_qkv, rw.is_parallel, rw.has_bias) == (32, True, False, True)
    assert rw.norms == ("input_layernorm", "post_attention_layernorm") and rw.rotary is None
    assert seven.rotary and seven.rotary.theta == 10000.0 and eleven.rotary and eleven.rotary.theta == 500042.0
    assert [config.context_len for config in (seven, forty, eleven, rw)] == [2048, 2048, 8192, 2048]
    assert [config.intermediate_size for config in (seven, eleven)] == [4 * 4544, 16384]


def test_the_7b_is_split_over_two_ranks_although_its_heads_are_odd():
    with torch.device("meta"):
        models = [FalconForCausalLM(read(FALCON_7B), Shard(rank, 2)) for rank in range(2)]
    assert [model.h[0].self_attention.query_key_value.split.num_local_heads for model in models] == [36, 35]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"some_new_trick": 2}, "some_new_trick"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"n_embed": 64}, "n_embed"),
        ({"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ({"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ({"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn"),
        ({"multi_query": False, "num_kv_heads": 2}, "num_kv_heads"),
        ({"new_decoder_architecture": True, "num_kv_heads": 0}, "num_kv_heads"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ({"ff_factor": 2}, "ff_factor"),
        ({"activation": "relu6"}, "relu6"),
        ({"alibi": "yes"}, "alibi"),
        ({"rope_scaling": {"type": "unheard", "factor": 2.0}}, "unheard"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)


def test_heads_that_cannot_be_grouped_are_refused():
    with pytest.raises(UnsupportedConfig, match="3 key/value heads"):
        FalconForCausalLM(read(TINY_40B, num_kv_heads=3), Shard())


def test_leftovers_of_published_files(tmp_path):
    reference = build(0, tmp_path)
    assert reference.config.tie_word_embeddings
    added = {f"transformer.h.{layer}.self_attention.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    added["lm_head.weight"] = load_file(tmp_path / WEIGHTS)["transformer.word_embeddings.weight"].clone()
    rename(tmp_path, lambda name: name, added=added)
    expected = reference_logits(reference, IDS)
    got = logits_in_chunks(load_folder(FalconForCausalLM, tmp_path), IDS)
    assert (got - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize(("changes", "num_ranks"), [({}, 4), ({"num_attention_heads": 8, "num_kv_heads": 1}, 2), ({"alibi": True}, 2)])
def test_ranks_beyond_the_key_heads(changes, num_ranks):
    config = read(TINY_40B, **changes)

    def logits(shard):
        model = FalconForCausalLM(config, shard)
        load_module(model, RandomWeights(0, std=0.3))
        return logits_in_chunks(model, IDS, sizes=[5, 1])

    expected = logits(Shard())
    for got in on_thread_ranks(num_ranks, logits):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
