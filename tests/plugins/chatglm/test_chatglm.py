"""ChatGLM2, ChatGLM3 and GLM-4 hold the conformance kit, and read what is published."""

import pytest
import torch

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.models.catalog import find_model
from actorllm.testing.model_checks import model_checks
from actorllm_chatglm.chatglm import ChatGLMModel

TINY = {"architectures": ["ChatGLMModel"], **ChatGLMModel.example_config}
# What the published files hold beside sizes.
CHATGLM3 = {
    "_name_or_path": "THUDM/chatglm3-6b", "architectures": ["ChatGLMModel"], "model_type": "chatglm",
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}, "add_bias_linear": False, "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "ffn_hidden_size": 13696, "fp32_residual_connection": False,
    "hidden_dropout": 0.0, "hidden_size": 4096, "kv_channels": 128, "layernorm_epsilon": 1e-05, "multi_query_attention": True,
    "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 2, "original_rope": True, "padded_vocab_size": 65024,
    "post_layer_norm": True, "rmsnorm": True, "seq_length": 8192, "use_cache": True, "torch_dtype": "float16",
    "transformers_version": "4.27.1", "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0,
    "quantization_bit": 0, "pre_seq_len": None, "prefix_projection": False, "vocab_size": 65024,
}  # fmt: skip
GLM4 = CHATGLM3 | {
    "_name_or_path": "THUDM/glm-4-9b-chat", "padded_vocab_size": 151552, "vocab_size": 151552, "num_hidden_layers": 2,
    "rope_ratio": 500, "seq_length": 131072, "layernorm_epsilon": 1.5625e-07, "classifier_dropout": None,
    "eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329,
}  # fmt: skip

test_chatglm = model_checks(ChatGLMModel, TINY)
test_chatglm_with_all_heads_and_biases = model_checks(
    ChatGLMModel, TINY | {"multi_query_attention": False, "add_bias_linear": True, "rmsnorm": False}
)


def read(base=TINY, **changes):
    config = {key: value for key, value in (base | changes).items() if value != "absent"}
    return ChatGLMModel.config_class.from_hf(config)


def test_published_files():
    for published, theta, context_len in ((CHATGLM3, 1e4, 8192), (GLM4, 5e6, 131072)):
        ours = read(published)
        assert (ours.num_heads, ours.num_kv_heads, ours.head_dim, ours.rotary.rotary_dim) == (32, 2, 128, 64)
        assert (ours.has_qkv_bias, ours.has_output_bias, ours.has_mlp_bias, ours.is_tied) == (True, False, False, False)
        assert (ours.rotary.theta, ours.rotary.is_interleaved, ours.context_len) == (theta, True, context_len)
        assert (ours.norm_eps, ours.vocab_size) == (published["layernorm_epsilon"], published["padded_vocab_size"])
        ChatGLMModel(ours, Shard())


@pytest.mark.parametrize(("name", "angle"), [("THUDM/chatglm2-6b-32k", 2.0), ("THUDM/chatglm3-6b-32k", 100.0)])
def test_the_ratio_divides_positions_in_chatglm2_and_multiplies_the_base_later(name, angle):
    tables = read(CHATGLM3, _name_or_path=name, rope_ratio=50).rotary.tables(torch.tensor([100]), torch.float32)
    torch.testing.assert_close(tables.cos_T1R[0, 0, 0], torch.tensor(angle).cos())  # the first pair's frequency is 1 for any base


def test_both_published_names_lead_here():
    assert find_model("ChatGLMModel") is find_model("ChatGLMForConditionalGeneration") is ChatGLMModel


def test_absent_keys_have_the_published_defaults():
    absent = ("kv_channels", "seq_length", "add_qkv_bias", "multi_query_attention", "multi_query_group_num", "layernorm_epsilon")
    parsed = read(**dict.fromkeys(absent, "absent"))
    assert (parsed.head_dim, parsed.context_len, parsed.has_qkv_bias, parsed.num_kv_heads) == (128, 2048, False, 4)
    assert (parsed.norm_eps, parsed.is_grouped, parsed.has_rms_norm) == (1e-5, False, True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position_encoding_2d": True}, "first ChatGLM"),
        ({"padded_vocab_size": "absent"}, "padded_vocab_size"),
        ({"quantization_bit": 4}, "quantization_bit"),
        ({"pre_seq_len": 128}, "pre_seq_len"),
        ({"post_layer_norm": False}, "post_layer_norm"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ({"fp32_residual_connection": True}, "fp32_residual_connection"),
        ({"interleaved_qkv": True}, "interleaved_qkv"),
        ({"num_hidden_layers": 3}, "contradicts"),
        ({"multi_query_group_num": 3}, "3 key/value heads"),
        ({"rope_ratio": 0}, "rope_ratio"),
        ({"kv_channels": 6}, "pairs"),
        ({"vision_config": {"image_size": 1120}}, "vision_config"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        ChatGLMModel(read(**changes), Shard())
