"""DeepSeek-V2 holds the conformance kit, reads its configs, and keeps latents instead of heads."""

import json

import pytest
import torch

from actorllm.errors import UnsupportedConfig
from actorllm.execution.kv_pool import KVPool
from actorllm.layers.rope_types import Yarn
from actorllm.layers.shard import Shard
from actorllm.testing.model_checks import model_checks
from actorllm.testing.tiny import TinyCache, logits_of, on_thread_ranks
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module
from actorllm_deepseek.deepseek_v2 import DeepseekV2ForCausalLM

TINY = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 96, "hidden_size": 32,
    "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False, "q_lora_rank": 14, "kv_lora_rank": 12, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6, "v_head_dim": 10, "first_k_dense_replace": 1, "n_routed_experts": 8, "n_shared_experts": 2,
    "num_experts_per_tok": 3, "moe_intermediate_size": 12, "routed_scaling_factor": 1.5, "topk_method": "group_limited_greedy",
    "n_group": 4, "topk_group": 2,
}  # fmt: skip
YARN = {
    "type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.5,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LITE = {
    "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"}, "aux_loss_alpha": 0.001, "bos_token_id": 100000,
    "eos_token_id": 100001, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
    "norm_topk_prob": False, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
    "num_key_value_heads": 16, "pretraining_tp": 1, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": True,
    "rope_scaling": YARN | {"factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096},
    "rope_theta": 10000, "tie_word_embeddings": False, "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1", "use_cache": True, "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
"""The keys of the published V2-Lite."""

test_deepseek_v2 = model_checks(DeepseekV2ForCausalLM, TINY)
test_plain_queries_and_yarn = model_checks(
    DeepseekV2ForCausalLM, TINY | {"q_lora_rank": None, "topk_method": "greedy", "rope_scaling": YARN, "first_k_dense_replace": 0}
)


def read(**changes):
    config = {key: value for key, value in (TINY | changes).items() if value != "absent"}
    return DeepseekV2ForCausalLM.config_class.from_hf(config)


def loaded(shard: Shard, **changes) -> DeepseekV2ForCausalLM:
    model = DeepseekV2ForCausalLM(read(**changes), shard)
    load_module(model, RandomWeights(0, std=0.2))
    return model


def test_the_published_lite_model_is_read():
    parsed = DeepseekV2ForCausalLM.config_class.from_hf(LITE)
    assert isinstance(parsed.rotary.type, Yarn) and parsed.rotary.is_interleaved
    assert parsed.rotary.type.attention_factor == 1.0  # one mscale in both places
    assert parsed.attention.scale == pytest.approx(192**-0.5 * (0.0707 * 3.6888794541 + 1) ** 2)
    assert (parsed.attention.query_rank, parsed.context_len, parsed.shared_size) == (None, 163840, 2816)
    assert (parsed.routing.num_experts, parsed.routing.top_k, parsed.routing.num_groups) == (64, 6, 1)
    DeepseekV2ForCausalLM(parsed, Shard())


def test_the_published_large_model_is_read():
    large = {
        "q_lora_rank": 1536, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy", "n_routed_experts": 160,
        "routed_scaling_factor": 16.0, "ep_size": 1, "num_attention_heads": 128, "num_key_value_heads": 128,
    }  # fmt: skip
    parsed = DeepseekV2ForCausalLM.config_class.from_hf(LITE | large)
    routing = parsed.routing
    assert (routing.num_groups, routing.top_groups, routing.scale, routing.is_normalised) == (8, 3, 16.0, False)
    assert parsed.attention.query_rank == 1536


def test_absent_and_null_say_different_things_of_the_query():
    assert read(q_lora_rank=None).attention.query_rank is None
    assert read(q_lora_rank="absent").attention.query_rank == 1536


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob"),
        ({"scoring_func": "sigmoid"}, "scoring_func"),
        ({"topk_method": "noaux_tc"}, "noaux_tc"),
        ({"topk_group": 5}, "5 of 4 groups"),
        ({"num_experts_per_tok": 5}, "5 experts"),
        ({"n_group": 3}, "3 groups"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"head_dim": 8}, "head_dim"),
        ({"qk_head_dim": 13}, "qk_head_dim"),
        ({"qk_rope_head_dim": 5}, "pairs"),
        ({"n_shared_experts": "absent"}, "n_shared_experts"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, named):
    with pytest.raises(UnsupportedConfig, match=named):
        read(**changes)


@pytest.mark.parametrize("name", ["deepseek-ai--DeepSeek-V3", "deepseek-ai--DeepSeek-R1", "deepseek-ai--DeepSeek-V3.2"])
def test_other_architectures_are_not_taken_for_this_one(data_dir, name):
    with pytest.raises(UnsupportedConfig):
        DeepseekV2ForCausalLM.config_class.from_hf(json.loads((data_dir / "configs" / name / "config.json").read_text()))


def test_a_token_takes_one_latent_and_one_rotated_key_a_layer():
    parsed = DeepseekV2ForCausalLM.config_class.from_hf(LITE)
    for rank in range(2):  # every rank holds the whole latents
        groups = DeepseekV2ForCausalLM(parsed, Shard(rank, 2)).cache_groups
        pool = KVPool(groups, [3], dtype=torch.bfloat16, device=torch.device("meta"))
        num_bytes = pool.num_bytes() // 3
        assert num_bytes == (512 + 64) * 27 * 2
    num_expanded = 16 * (128 + 64 + 128) * 27 * 2
    print(f"DeepSeek-V2-Lite: {num_bytes} bytes a cached token; keys and values of all heads would take {num_expanded}")
    assert num_expanded / num_bytes == pytest.approx(8.9, abs=0.05)


def test_the_cache_holds_normalised_latents_and_rotated_keys():
    model = loaded(Shard())
    cache = TinyCache(model.cache_groups, num_rows=1, context=8)
    logits_of(model, cache, [(0, [3, 1, 4, 1, 5])])
    pool = cache.buffer(0, 0, "latent")
    written = pool[~pool.isnan().any(dim=1)]
    assert written.shape == (5, 12 + 6)
    weight = RandomWeights(0, std=0.2).tensor("model.layers.0.self_attn.kv_a_layernorm.weight", (12,))
    torch.testing.assert_close((written[:, :12] / weight).square().mean(dim=1), torch.ones(5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("changes", [{"num_attention_heads": 5, "hidden_size": 30}, {"q_lora_rank": None}])
def test_uneven_heads_are_split(changes):
    ids = list(range(11))

    def work(shard: Shard) -> torch.Tensor:
        model = loaded(shard, **changes)
        return logits_of(model, TinyCache(model.cache_groups, num_rows=1, context=16), [(0, ids)])

    [alone] = on_thread_ranks(1, work)
    for got in on_thread_ranks(3, work):
        torch.testing.assert_close(got, alone, atol=1e-4, rtol=1e-4)


def test_without_shared_experts():
    model = loaded(Shard(), n_shared_experts=0)
    assert not [name for name, _ in model.named_modules() if "shared_experts" in name]
