"""Reading config.json: real files are served or refused by type, and nothing in one is overlooked."""

import json

import pytest

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.weights.stored import stored_format
from actorllm_llama.llama import LlamaForCausalLM
from actorllm_llama.mistral import MistralForCausalLM
from actorllm_llama.qwen2 import Qwen2ForCausalLM
from actorllm_llama.qwen3 import Qwen3ForCausalLM

CLASSES = {cls.__name__: cls for cls in (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)}
SERVED = {"atom-7b-llama2", "Qwen--Qwen3-0.6B", "Qwen--Qwen3-8B"}
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def read(architecture: str = "LlamaForCausalLM", **changes):
    config = {"architectures": [architecture]} | TINY | changes
    return CLASSES[architecture].config_class.from_hf({key: value for key, value in config.items() if value != "absent"})


def test_real_configs_are_served_or_refused(data_dir):
    served = set()
    for path in sorted((data_dir / "configs").glob("*/config.json")):
        config = json.loads(path.read_text())
        architecture = config["architectures"][0]
        # every class sees every file: one that belongs to another architecture must not be taken for its own
        for name, cls in CLASSES.items():
            try:
                stored_format(config)
                parsed = cls.config_class.from_hf(config)
            except UnsupportedConfig:
                continue
            if name == architecture:
                cls(parsed, Shard())
                served.add(path.parent.name)
    assert served == SERVED


def test_real_values_arrive(data_dir):
    config = json.loads((data_dir / "configs/Qwen--Qwen3-0.6B/config.json").read_text())
    parsed = Qwen3ForCausalLM.config_class.from_hf(config)
    assert (parsed.head_dim, parsed.num_kv_heads, parsed.rotary.theta, parsed.context_len) == (128, 8, 1e6, 40960)
    assert parsed.is_tied and parsed.has_qk_norm and not parsed.has_qkv_bias
    assert set(parsed.windows) == {None}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"some_new_trick": 2}, "some_new_trick"),
        ({"rope_scaling": {"type": "mrope", "factor": 4.0}}, "mrope"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "relu6"}, "relu6"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers"),
        ({"hidden_size": -32}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"intermediate_size": 40.0}, "intermediate_size"),
        ({"intermediate_size": "40"}, "intermediate_size"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"num_attention_heads": 64}, "head_dim"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"mlp_bias": 1}, "mlp_bias"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize("window", [0, -1, 2.5, "7"])
def test_a_wrong_window_is_refused(architecture, window):
    with pytest.raises(UnsupportedConfig, match="sliding_window"):
        read(architecture, sliding_window=window)


def test_neutral_keys_change_nothing():
    notes = {
        "torch_dtype": "bfloat16", "use_cache": False, "initializer_range": 0.1, "pretraining_tp": 2, "eos_token_id": [1, 2],
        "transformers_version": "4.0", "attention_dropout": 0.5, "auto_map": {"AutoModel": "evil.py"}, "anything": None,
    }  # fmt: skip
    assert read(**notes) == read()


def test_both_ways_to_write_rope():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = read(rope_theta=5e5, rope_scaling={"rope_type": "llama3"} | scaling)
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5} | scaling)
    assert old == new and old.rotary.type.name == "llama3"


@pytest.mark.parametrize(("kind", "context"), [("linear", 512), ("dynamic", 512), ("default", 128)])
def test_scaling_stretches_the_context(kind, context):
    assert read(rope_parameters={"rope_type": kind} | ({"factor": 4.0} if kind != "default" else {})).context_len == context


def test_absent_keys_mean_what_transformers_takes():
    mistral = read("MistralForCausalLM", num_attention_heads=8, num_key_value_heads="absent")
    assert (mistral.num_kv_heads, set(mistral.windows)) == (8, {4096})
    assert read("MistralForCausalLM", sliding_window=None).windows == (None,) * 4
    assert read("Qwen3ForCausalLM").head_dim == 128
    assert read("LlamaForCausalLM", num_key_value_heads="absent").num_kv_heads == 4


def test_windows_of_layers_and_their_cache_groups():
    config = read("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=9, max_window_layers=3)
    assert config.windows == (None, None, None, 9)
    groups = Qwen2ForCausalLM(config, Shard()).cache_groups
    assert [(group.window, group.layers) for group in groups] == [(None, (0, 1, 2)), (9, (3,))]
    kinds = ["sliding_attention", "full_attention"] * 2
    assert read("Qwen3ForCausalLM", use_sliding_window=True, sliding_window=9, layer_types=kinds).windows == (9, None) * 2
    assert read("Qwen2ForCausalLM", sliding_window=9, max_window_layers=0).windows == (None,) * 4


@pytest.mark.parametrize("kinds", [["full_attention"], ["linear_attention"] * 4, "full_attention"])
def test_unknown_layer_types_are_refused(kinds):
    with pytest.raises(UnsupportedConfig, match="layer_types"):
        read("Qwen2ForCausalLM", layer_types=kinds)


def test_a_rank_caches_only_its_heads():
    model = LlamaForCausalLM(read(), Shard(1, 2))
    assert [buffer.shape for buffer in model.cache_groups[0].buffers] == [(1, 8), (1, 8)]
