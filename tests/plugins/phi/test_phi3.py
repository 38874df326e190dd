"""Phi-3 holds the conformance kit, reads what is published, and chooses its rotary factors by the served context."""

import json
import logging

import pytest
import torch
import transformers

from actorllm.errors import UnsupportedConfig
from actorllm.execution.model_plan import plan_model
from actorllm.layers.shard import Shard
from actorllm.models.loading import load_weights
from actorllm.settings import EngineSettings, ModelSettings
from actorllm.testing.model_checks import model_checks
from actorllm.testing.reference import randomize, reference_logits
from actorllm.testing.tiny import logits_in_chunks
from actorllm.weights.checkpoint import Checkpoint
from actorllm_phi.phi3 import Phi3ForCausalLM

TINY = {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "sliding_window": 9,
    "partial_rotary_factor": 1.0, "pad_token_id": 0,
}  # fmt: skip
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.5, 3.0, 6.0]}
LONG = TINY | {"sliding_window": None, "original_max_position_embeddings": 16, "rope_scaling": LONGROPE}
# What the published files hold beside sizes.
PUBLISHED = {
    "Phi-3-mini-4k": {
        "attention_bias": False, "attention_dropout": 0.0, "embd_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 4,
        "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "Phi-3.5-mini": {
        "attention_bias": False, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 4, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 262144,
        "rope_scaling": {"type": "longrope", "long_factor": [2.5] * 48, "short_factor": [1.1] * 48},
        "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "Phi-4-mini": {
        "attention_bias": False, "embd_pdrop": 0.0, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False, "max_position_embeddings": 131072,
        "mlp_bias": False, "num_attention_heads": 24, "num_hidden_layers": 4, "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "long_factor": [2.5] * 48, "short_factor": [1.0] * 48},
        "sliding_window": 262144, "tie_word_embeddings": True, "vocab_size": 200064,
    },
}  # fmt: skip

test_phi3 = model_checks(Phi3ForCausalLM, TINY)
test_phi3_with_longrope = model_checks(Phi3ForCausalLM, LONG | {"model_type": "compared in tests/parity"})


def read(base=TINY, **changes):
    config = {key: value for key, value in (base | changes).items() if value != "absent"}
    return Phi3ForCausalLM.config_class.from_hf(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_mean_what_transformers_takes(name):
    theirs = transformers.Phi3Config(**json.loads(json.dumps(PUBLISHED[name])))
    ours = read(PUBLISHED[name])
    assert (ours.vocab_size, ours.num_heads, ours.num_kv_heads, ours.is_tied, set(ours.windows)) == (
        theirs.vocab_size, theirs.num_attention_heads, theirs.num_key_value_heads, theirs.tie_word_embeddings,
        {theirs.sliding_window},
    )  # fmt: skip
    model = transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding(theirs)
    positions = torch.arange(4000, 5000, 100)  # from within the original context to past it: the long factors
    cos, sin = model(torch.zeros(1), positions[None])
    tables = ours.rotary.tables(positions, torch.float32)
    torch.testing.assert_close(tables.cos_T1R[:, 0], cos[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(tables.sin_T1R[:, 0], sin[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_early_names_of_longrope(name):
    assert read(LONG, rope_scaling=LONGROPE | {"type": name}) == read(LONG)


def test_absent_keys_have_transformers_defaults():
    parsed = read(num_key_value_heads="absent", rms_norm_eps="absent", sliding_window="absent", rope_theta="absent")
    assert (parsed.num_kv_heads, parsed.norm_eps, set(parsed.windows), parsed.rotary.theta) == (4, 1e-5, {None}, 10000.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": LONGROPE | {"short_factor": [1.0]}}, "short_factor"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 4}}, "long_factor"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        ({"attention_bias": True}, "attention_bias"),
        ({"lm_head_bias": True}, "lm_head_bias"),
        ({"full_attn_mod": 2}, "full_attn_mod"),
        ({"num_local_experts": 16}, "num_local_experts"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"original_max_position_embeddings": "4k"}, "original_max_position_embeddings"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)


@pytest.mark.parametrize(("context", "word"), [(None, "long"), (17, "long"), (16, "short")])
def test_the_served_context_chooses_the_factors(context, word, tmp_path, caplog):
    """With the short ones, transformers' logits for prompts within the original context; with the long ones, beyond it."""
    settings = {key: value for key, value in LONG.items() if key not in ("architectures", "model_type")}
    reference = transformers.Phi3ForCausalLM(transformers.Phi3Config(**json.loads(json.dumps(settings)))).eval()
    randomize(reference, 0)
    reference.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        plan = plan_model(tmp_path, EngineSettings(model=ModelSettings(context=context)))
    assert f"the {word} factors are used" in caplog.text
    model = plan.build(Shard())
    with Checkpoint.open(tmp_path) as checkpoint:
        load_weights(model, checkpoint)
    for length, is_right in ((16, word == "short"), (17, word == "long")):
        ids = list(range(length))
        is_close = torch.allclose(logits_in_chunks(model, ids, sizes=[5]), reference_logits(reference, ids), atol=1e-4)
        assert is_close == is_right
