"""GPTBigCodeForCausalLM: StarCoder, GPT-2 with one key/value head for all query heads (arXiv 2305.06161)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from actorllm.models.contract import ConfigReader
from actorllm_gpt.config import GPTConfig
from actorllm_gpt.gpt2 import GPT2LMHeadModel

SOFTMAX_KEYS = ("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
ENGINE_KEYS = (
    "inference_runner", "max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache",
    "validate_runner_input",
)  # fmt: skip


@dataclass(frozen=True)
class GPTBigCodeConfig(GPTConfig):
    default_activation: ClassVar = "gelu_pytorch_tanh"

    @classmethod
    def read_variant(cls, reader: ConfigReader, values: Mapping[str, Any]) -> dict[str, Any]:
        is_multi_query = reader.flag("multi_query", True)
        num_kv_heads = 1 if is_multi_query else values["num_kv_heads"]
        reader.expect("num_key_value_heads", [num_kv_heads], "multi_query decides")
        for key in SOFTMAX_KEYS + ENGINE_KEYS:
            reader.neutral(key, "softmax is in float32, and other engines' settings decide nothing")
        return {"num_kv_heads": num_kv_heads, "has_packed_qkv": not is_multi_query}


class GPTBigCodeForCausalLM(GPT2LMHeadModel):
    config_class = GPTBigCodeConfig
    transposed_linears = ()
    example_config = {
        "model_type": "gpt_bigcode", "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "multi_query": True, "scale_attn_weights": True, "n_inner": 48, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    }  # fmt: skip
