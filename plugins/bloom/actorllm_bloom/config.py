"""What config.json says of a Bloom model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actorllm.models.contract import ConfigReader

ALIASES = {"n_embed": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
NEUTRAL = {
    "attention_softmax_in_fp32": "the softmax is in float32",
    "bias_dropout_fusion": "a choice of kernels",
    "masked_softmax_fusion": "a choice of kernels",
    "skip_bias_add": "a choice of kernels",
    "skip_bias_add_qkv": "a choice of kernels",
    "offset_alibi": "a note of the writer: a shift of all biases changes nothing",
}
TRAINED_LEN = 2048
"""The length that all Bloom models were trained with. ALiBi has no limit of its own, and most files name none."""


@dataclass(frozen=True)
class BloomConfig:
    """What the family varies. With `has_normed_residual` a block's output is added to its normed input."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    context_len: int
    norm_eps: float
    is_tied: bool
    has_normed_residual: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "BloomConfig":
        """Read config.json; raises `UnsupportedConfig` for what this family does not compute."""
        reader = ConfigReader(config, aliases=ALIASES)
        hidden_size, num_heads = reader.size("hidden_size"), reader.size("num_attention_heads")
        reader.expect("n_inner", [4 * hidden_size], "the feed-forward block of Bloom is four times as wide as the model")
        reader.expect("slow_but_exact", [False], "with it, transformers leaves out the biases behind attention and feed-forward block")
        for key, reason in NEUTRAL.items():
            reader.neutral(key, reason)
        read = cls(
            vocab_size=reader.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_layers=reader.layers(),
            num_heads=num_heads,
            head_dim=reader.head_dim(hidden_size, num_heads),
            context_len=reader.size("seq_length", TRAINED_LEN),
            norm_eps=reader.number("layer_norm_epsilon", 1e-5),
            is_tied=reader.flag("tie_word_embeddings", True),
            has_normed_residual=reader.flag("apply_residual_connection_post_layernorm"),
        )
        reader.finish()
        return read
