"""OPT holds the conformance kit, reads published configs and names."""

import pytest
import torch

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.testing.against_transformers import load_folder
from actorllm.testing.model_checks import model_checks
from actorllm.testing.reference import reference_logits
from actorllm.testing.tiny import logits_in_chunks
from actorllm_opt.opt import OPTForCausalLM
from tests.parity.families.opt import build
from tests.plugins.published import rename

IDS = list(range(20))
TINY = dict(OPTForCausalLM.example_config)
# After the norm of the last sum nothing is left to vary but the projection.
TINY_350M = TINY | {"do_layer_norm_before": False, "word_embed_proj_dim": 20, "_remove_final_layer_norm": False}

test_opt = model_checks(OPTForCausalLM, TINY)
test_opt_350m = model_checks(OPTForCausalLM, TINY_350M)

OPT_125M = {
    "_name_or_path": "opt-125m", "_remove_final_layer_norm": False, "activation_dropout": 0.0, "activation_function": "relu",
    "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": True, "dropout": 0.1,
    "eos_token_id": 2, "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
    "model_type": "opt", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "prefix": "</s>",
    "torch_dtype": "float16", "use_cache": True, "vocab_size": 50272, "word_embed_proj_dim": 768,
}  # fmt: skip
OPT_350M = OPT_125M | {
    "do_layer_norm_before": False, "ffn_dim": 4096, "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24,
    "word_embed_proj_dim": 512,
}  # fmt: skip


def read(**changes):
    return OPTForCausalLM.config_class.from_hf({key: value for key, value in (TINY | changes).items() if value != "absent"})


def test_published_configs():
    small, odd = map(OPTForCausalLM.config_class.from_hf, (OPT_125M, OPT_350M))
    assert (small.embedding_size, small.is_pre_norm, small.has_final_norm, small.context_len) == (768, True, True, 2048)
    assert (odd.embedding_size, odd.hidden_size, odd.is_pre_norm, odd.has_final_norm) == (512, 1024, False, False)
    assert small.is_tied and small.has_bias and small.has_norm_weights and small.activation == "relu"


def test_the_position_table_has_two_rows_more():
    with torch.device("meta"):
        assert OPTForCausalLM(read(), Shard()).embed_positions.shape == (66, 32)


def test_absent_keys_have_the_published_defaults():
    defaults = ("word_embed_proj_dim", "do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine", "activation_function")
    assert read(**dict.fromkeys((*defaults, "tie_word_embeddings"), "absent")) == read()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"some_new_trick": 2}, "some_new_trick"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"ffn_dim": "absent"}, "ffn_dim"),
        ({"max_position_embeddings": "absent"}, "max_position_embeddings"),
        ({"activation_function": "relu6"}, "relu6"),
        ({"do_layer_norm_before": "yes"}, "do_layer_norm_before"),
        ({"_remove_final_layer_norm": 1}, "_remove_final_layer_norm"),
        ({"word_embed_proj_dim": 0}, "word_embed_proj_dim"),
        ({"enable_bias": 0}, "enable_bias"),
        ({"layer_norm_elementwise_affine": 0}, "layer_norm_elementwise_affine"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)


@pytest.mark.parametrize("prefix", ["decoder.", ""])
@pytest.mark.parametrize("seed", [0, 1])
def test_names_with_less_of_a_prefix(prefix, seed, tmp_path):
    reference = build(seed, tmp_path)
    names = rename(tmp_path, lambda name: name.replace("model.decoder.", prefix), added={})
    assert f"{prefix}layers.1.self_attn_layer_norm.bias" in names
    assert (f"{prefix}project_in.weight" in names) == (seed == 1)
    expected = reference_logits(reference, IDS)
    got = logits_in_chunks(load_folder(OPTForCausalLM, tmp_path), IDS)
    assert (got - expected).abs().max() < 1e-4 * expected.std()
