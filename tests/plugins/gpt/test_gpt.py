"""GPT-2 and StarCoder hold the conformance kit, read published configs and names, and split over ranks."""

from dataclasses import replace

import pytest
import torch

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.against_transformers import load_folder
from actorllm.testing.model_checks import model_checks
from actorllm.testing.reference import reference_logits
from actorllm.testing.tiny import logits_in_chunks, on_thread_ranks
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module
from actorllm_gpt.bigcode import GPTBigCodeForCausalLM
from actorllm_gpt.gpt2 import GPT2LMHeadModel
from tests.parity.families.gpt import CASES
from tests.plugins.published import rename

CLASSES = {"GPT2LMHeadModel": GPT2LMHeadModel, "GPTBigCodeForCausalLM": GPTBigCodeForCausalLM}
IDS = list(range(20))

test_gpt2 = model_checks(GPT2LMHeadModel)
test_starcoder = model_checks(GPTBigCodeForCausalLM)
test_multi_head = model_checks(GPTBigCodeForCausalLM, {**GPTBigCodeForCausalLM.example_config, "multi_query": False})

GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
    "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "n_special": 0, "predict_special_tokens": True,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 50257,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
STARCODER = {
    "activation_function": "gelu_pytorch_tanh", "architectures": ["GPTBigCodeForCausalLM"], "attention_softmax_in_fp32": True,
    "attn_pdrop": 0.1, "bos_token_id": 0, "embd_pdrop": 0.1, "eos_token_id": 0, "inference_runner": 0, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "max_batch_size": None, "max_sequence_length": None, "model_type": "gpt_bigcode",
    "multi_query": True, "n_embd": 6144, "n_head": 48, "n_inner": 24576, "n_layer": 40, "n_positions": 8192,
    "pad_key_length": True, "pre_allocate_kv_cache": False, "resid_pdrop": 0.1, "scale_attention_softmax_in_fp32": True,
    "scale_attn_weights": True, "summary_type": "cls_index", "torch_dtype": "float32", "use_cache": True,
    "validate_runner_input": True, "vocab_size": 49152,
}  # fmt: skip


def read(architecture="GPT2LMHeadModel", **changes):
    config = {"architectures": [architecture]} | CLASSES[architecture].example_config | changes
    return CLASSES[architecture].config_class.from_hf({key: value for key, value in config.items() if value != "absent"})


def test_published_configs():
    gpt2 = GPT2LMHeadModel.config_class.from_hf(GPT2)
    assert (gpt2.hidden_size, gpt2.intermediate_size, gpt2.num_layers, gpt2.num_kv_heads) == (768, 3072, 12, 12)
    assert (gpt2.context_len, gpt2.scales, gpt2.is_tied, gpt2.has_packed_qkv) == (1024, (0.125,) * 12, True, False)
    starcoder = GPTBigCodeForCausalLM.config_class.from_hf(STARCODER)
    assert (starcoder.num_heads, starcoder.num_kv_heads, starcoder.head_dim) == (48, 1, 128)
    assert (starcoder.context_len, starcoder.intermediate_size, starcoder.has_packed_qkv) == (8192, 24576, False)


def test_keys_may_have_their_general_names():
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    names["n_positions"] = "max_position_embeddings"
    example = GPT2LMHeadModel.example_config
    assert read(**{name: "absent" for name in names}, **{names[name]: example[name] for name in names}) == read()
    with pytest.raises(UnsupportedConfig, match="n_embd = 32 contradicts hidden_size = 64"):
        read(hidden_size=64)


def test_scales_of_layers():
    read_scales = [
        read(scale_attn_weights=scaled, scale_attn_by_inverse_layer_idx=by_layer).scales
        for scaled, by_layer in ((True, True), (False, True), (False, False))
    ]
    assert read_scales == [(8**-0.5, 8**-0.5 / 2), (1.0, 0.5), (1.0, 1.0)]


@pytest.mark.parametrize("architecture", CLASSES)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"some_new_trick": 2}, "some_new_trick"),
        ({"n_head": 5}, "5 heads"),
        ({"n_positions": "absent"}, "max_position_embeddings"),
        ({"vocab_size": "absent"}, "vocab_size"),
        ({"activation_function": "relu6"}, "relu6"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"rope_theta": 1e4}, "rope_theta"),
        ({"layer_norm_epsilon": -1}, "layer_norm_epsilon"),
        ({"scale_attn_weights": 1}, "scale_attn_weights"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(architecture, changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(architecture, **changes)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("GPTBigCodeForCausalLM", {"scale_attn_by_inverse_layer_idx": True}),
        ("GPT2LMHeadModel", {"multi_query": True}),
        ("GPTBigCodeForCausalLM", {"num_key_value_heads": 2}),
    ],
)
def test_a_key_of_the_other_architecture_is_refused(architecture, changes):
    with pytest.raises(UnsupportedConfig, match=next(iter(changes))):
        read(architecture, **changes)


@pytest.mark.parametrize("architecture", CLASSES)
def test_names_without_a_prefix(architecture, tmp_path):
    reference = CASES[architecture](0, tmp_path)
    added = {"h.0.attn.bias": torch.ones(1, 1, 96, 96).tril().bool(), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    names = rename(tmp_path, lambda name: name.removeprefix("transformer."), added=added)
    assert {"wte.weight", "h.0.attn.c_attn.bias", "h.0.attn.bias", "ln_f.bias"} <= names
    expected = reference_logits(reference, IDS)
    got = logits_in_chunks(load_folder(CLASSES[architecture], tmp_path), IDS)
    assert (got - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize(("num_heads", "num_ranks"), [(5, 2), (5, 3), (4, 4)])
def test_ranks_share_the_one_key_head(num_heads, num_ranks):
    config = replace(read("GPTBigCodeForCausalLM", n_embd=40, n_head=4), num_heads=num_heads, head_dim=40 // num_heads)

    def logits(shard):
        model = GPTBigCodeForCausalLM(config, shard)
        assert {buffer.shape for group in model.cache_groups for buffer in group.buffers} == {(1, config.head_dim)}
        load_module(model, RandomWeights(0, std=0.3))
        return logits_in_chunks(model, IDS, sizes=[5, 1])

    expected = logits(Shard())
    for got in on_thread_ranks(num_ranks, logits):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
