"""The conformance kit on both generations, checkpoints that also hold a vision tower, and what a token takes in the cache."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from actorllm.errors import TensorLeftOver, UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.against_transformers import load_folder
from actorllm.testing.model_checks import model_checks
from actorllm.testing.reference import reference_logits
from actorllm.testing.tiny import logits_in_chunks
from actorllm_gemma.gemma2 import Gemma2ForCausalLM
from actorllm_gemma.gemma3 import Gemma3ForCausalLM, Gemma3ForConditionalGeneration
from tests.parity.families.gemma import gemma3_with_images

GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24,
    "sliding_window": 9,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "pad_token_id": 0,
}
GEMMA3 = {
    **GEMMA2,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "rope_local_base_freq": 1000.0,
    "sliding_window_pattern": 3,
}
del GEMMA3["attn_logit_softcapping"]

test_gemma2 = model_checks(Gemma2ForCausalLM, GEMMA2)
test_gemma3 = model_checks(Gemma3ForCausalLM, GEMMA3)


def test_layers_with_a_window_have_a_cache_group_of_their_own():
    model = Gemma3ForCausalLM(Gemma3ForCausalLM.config_class.from_hf(GEMMA3), Shard(1, 2))
    assert [(group.window, group.layers) for group in model.cache_groups] == [(9, (0, 1)), (None, (2,))]
    assert [buffer.shape for group in model.cache_groups for buffer in group.buffers] == [(1, 8)] * 4


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_vision_tower_is_left_out_by_either_naming(tmp_path, is_nested):
    """transformers has written `language_model.model.*` and `model.language_model.*`."""
    reference = gemma3_with_images(0, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    assert any(name.startswith("vision_tower.") for name in tensors)
    if is_nested:
        renamed = {f"model.{name}".replace("model.language_model.model.", "model.language_model."): tensors[name] for name in tensors}
        save_file(renamed, file)
    ids = list(range(100, 120))
    got = logits_in_chunks(load_folder(Gemma3ForConditionalGeneration, tmp_path), ids)
    torch.testing.assert_close(got, reference_logits(reference, ids), atol=2e-4, rtol=0)


def test_other_towers_are_not_left_out_silently(tmp_path):
    gemma3_with_images(0, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"audio_tower.weight": torch.ones(1)}, file)
    with pytest.raises(TensorLeftOver, match="audio_tower"):
        load_folder(Gemma3ForConditionalGeneration, tmp_path)


def test_the_text_part_alone_is_refused_by_its_architecture(tmp_path):
    """A config for images under the name of the text model says what is wrong."""
    gemma3_with_images(0, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(UnsupportedConfig, match="hidden_size"):
        Gemma3ForCausalLM.config_class.from_hf(config)
