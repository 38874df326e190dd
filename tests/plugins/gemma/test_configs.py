"""Reading config.json: published files are read as transformers reads them, and nothing in one is overlooked."""

import pytest
import transformers

from actorllm.errors import UnsupportedConfig
from actorllm_gemma.gemma2 import Gemma2ForCausalLM
from actorllm_gemma.gemma3 import Gemma3ForCausalLM, Gemma3ForConditionalGeneration

CLASSES = {cls.__name__: cls for cls in (Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3ForConditionalGeneration)}
SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 7}
# What the published files hold beside sizes: as the 2b of Gemma 2, the 1b and the 4b of Gemma 3 do.
GEMMA2 = SIZES | {
    "attention_bias": False, "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid", "final_logit_softcapping": 30.0,
    "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
    "model_type": "gemma2", "num_attention_heads": 8, "num_key_value_heads": 4, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
}  # fmt: skip
GEMMA3 = SIZES | {
    "attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_attention_heads": 4, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6, "vocab_size": 262144,
}  # fmt: skip
TEXT = SIZES | {"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
IMAGES = {
    "text_config": TEXT, "vision_config": {"hidden_size": 16}, "mm_tokens_per_image": 256, "image_token_index": 262144,
    "boi_token_index": 255999, "eoi_token_index": 256000, "eos_token_id": [1, 106], "initializer_range": 0.02,
}  # fmt: skip
PUBLISHED = {"Gemma2ForCausalLM": GEMMA2, "Gemma3ForCausalLM": GEMMA3, "Gemma3ForConditionalGeneration": IMAGES}


def read(architecture: str, **changes):
    return CLASSES[architecture].config_class.from_hf({"architectures": [architecture]} | PUBLISHED[architecture] | changes)


@pytest.mark.parametrize("architecture", CLASSES)
def test_published_files_mean_what_transformers_takes(architecture):
    """Defaults that a file leaves out included."""
    theirs = getattr(transformers, architecture).config_class(**PUBLISHED[architecture])
    theirs = getattr(theirs, "text_config", theirs)
    ours = read(architecture)
    assert (ours.vocab_size, ours.num_heads, ours.num_kv_heads, ours.head_dim, ours.context_len) == (
        theirs.vocab_size, theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim, theirs.max_position_embeddings,
    )  # fmt: skip
    assert (ours.attention_scale, ours.final_soft_cap, ours.is_tied) == (
        theirs.query_pre_attn_scalar**-0.5, theirs.final_logit_softcapping, theirs.tie_word_embeddings,
    )  # fmt: skip
    kinds = [None if kind == "full_attention" else theirs.sliding_window for kind in theirs.layer_types]
    assert ours.windows == tuple(kinds)
    rope = theirs.rope_parameters
    full, local = (rope["full_attention"], rope["sliding_attention"]) if "full_attention" in rope else (rope, rope)
    assert (ours.rotary.theta, ours.rotary.type.name) == (full["rope_theta"], full["rope_type"])
    assert getattr(ours.rotary.type, "factor", None) == full.get("factor")
    assert (ours.local_rotary.theta, ours.local_rotary.type.name) == (local["rope_theta"], local["rope_type"])


def test_what_is_absent_and_what_is_null():
    config = {key: value for key, value in GEMMA2.items() if "softcapping" not in key} | {"architectures": ["Gemma2ForCausalLM"]}
    absent = Gemma2ForCausalLM.config_class.from_hf(config)
    assert (absent.attention_soft_cap, absent.final_soft_cap) == (50.0, 30.0)
    null = read("Gemma2ForCausalLM", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (null.attention_soft_cap, null.final_soft_cap) == (None, None)


def test_both_ways_to_write_two_ropes():
    new = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    old = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    bare = {key: value for key, value in GEMMA3.items() if not key.startswith("rope_")} | {"architectures": ["Gemma3ForCausalLM"]}
    read_new, read_old = (Gemma3ForCausalLM.config_class.from_hf(bare | ropes) for ropes in ({"rope_parameters": new}, old))
    assert read_new == read_old
    assert (read_new.rotary.type.factor, read_new.local_rotary.theta, read_new.context_len) == (8.0, 2e4, 32768)


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        ("Gemma2ForCausalLM", {"some_new_trick": 2}, "some_new_trick"),
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": "50"}, "attn_logit_softcapping"),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": 0}, "final_logit_softcapping"),
        ("Gemma2ForCausalLM", {"hidden_activation": "relu6"}, "relu6"),
        ("Gemma2ForCausalLM", {"layer_types": ["chunked_attention"] * 7}, "layer_types"),
        ("Gemma2ForCausalLM", {"sliding_window": 0}, "sliding_window"),
        ("Gemma2ForCausalLM", {"rope_local_base_freq": 1e4}, "rope_local_base_freq"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"full_attention": 3}}, "full_attention"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"sliding_attention": {"rope_type": "unheard"}}}, "unheard"),
        ("Gemma3ForConditionalGeneration", {"text_config": None}, "text_config"),
        ("Gemma3ForConditionalGeneration", {"text_config": TEXT | {"some_new_trick": 2}}, "some_new_trick"),
        ("Gemma3ForConditionalGeneration", {"text_config": TEXT | {"final_logit_softcapping": 3.0}}, "final_logit_softcapping"),
        ("Gemma3ForConditionalGeneration", {"audio_config": {}}, "audio_config"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(architecture, changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(architecture, **changes)
