"""What config.json says of an OPT model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actorllm.layers.activation import activation
from actorllm.models.contract import ConfigReader

NEUTRAL = {
    "dropout": "training",
    "activation_dropout": "training",
    "layerdrop": "training",
    "init_std": "training",
}


@dataclass(frozen=True)
class OPTConfig:
    """What the family varies. `embedding_size` is the width of the token table, which may be projected to `hidden_size`;
    `is_pre_norm` norms what goes into a block, otherwise what comes out of the sum."""

    vocab_size: int
    hidden_size: int
    embedding_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    context_len: int
    activation: str
    is_tied: bool
    is_pre_norm: bool
    has_final_norm: bool
    has_bias: bool
    has_norm_weights: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "OPTConfig":
        """Read config.json; raises `UnsupportedConfig` for what this family does not compute."""
        reader = ConfigReader(config)
        hidden_size, num_heads = reader.size("hidden_size"), reader.size("num_attention_heads")
        is_pre_norm, is_removed = reader.flag("do_layer_norm_before", True), reader.flag("_remove_final_layer_norm")
        read = cls(
            vocab_size=reader.size("vocab_size"),
            hidden_size=hidden_size,
            embedding_size=reader.size("word_embed_proj_dim", hidden_size),
            intermediate_size=reader.size("ffn_dim"),
            num_layers=reader.layers(),
            num_heads=num_heads,
            head_dim=reader.head_dim(hidden_size, num_heads),
            context_len=reader.size("max_position_embeddings"),
            activation=reader.name("activation_function", "relu"),
            is_tied=reader.flag("tie_word_embeddings", True),
            is_pre_norm=is_pre_norm,
            has_final_norm=is_pre_norm and not is_removed,
            has_bias=reader.flag("enable_bias", True),
            has_norm_weights=reader.flag("layer_norm_elementwise_affine", True),
        )
        activation(read.activation)
        for key, reason in NEUTRAL.items():
            reader.neutral(key, reason)
        reader.finish()
        return read
