"""What config.json says of a model of the GPT-2 family: the keys that its architectures share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from actorllm.layers.activation import activation
from actorllm.models.contract import ConfigReader

ALIASES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
NEUTRAL = {
    "n_ctx": "the positions decide",
    "summary_type": "classification",
    "summary_use_proj": "classification",
    "summary_activation": "classification",
    "summary_proj_to_labels": "classification",
    "summary_first_dropout": "training",
}


@dataclass(frozen=True)
class GPTConfig:
    """What the family varies. `scales[i]` multiplies the scores of layer i; with `has_packed_qkv` each head's query, key
    and value lie together in the checkpoint, else all queries come first."""

    default_activation: ClassVar[str]

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_len: int
    norm_eps: float
    activation: str
    is_tied: bool
    scales: tuple[float, ...]
    has_packed_qkv: bool = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json; raises `UnsupportedConfig` for what this family does not compute."""
        reader = ConfigReader(config, aliases=ALIASES)
        num_layers, num_heads, hidden_size = reader.layers(), reader.size("num_attention_heads"), reader.size("hidden_size")
        head_dim = reader.head_dim(hidden_size, num_heads)
        scale = head_dim**-0.5 if reader.flag("scale_attn_weights", True) else 1.0
        values = {"num_kv_heads": num_heads, "scales": (scale,) * num_layers}
        read = cls(
            vocab_size=reader.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=reader.size("n_inner", 4 * hidden_size),
            num_layers=num_layers,
            num_heads=num_heads,
            head_dim=head_dim,
            context_len=reader.size("max_position_embeddings"),
            norm_eps=reader.number("layer_norm_epsilon", 1e-5),
            activation=reader.name("activation_function", cls.default_activation),
            is_tied=reader.flag("tie_word_embeddings", True),
            **values | cls.read_variant(reader, values),
        )
        activation(read.activation)
        for key, reason in NEUTRAL.items():
            reader.neutral(key, reason)
        reader.finish()
        return read

    @classmethod
    def read_variant(cls, reader: ConfigReader, values: Mapping[str, Any]) -> dict[str, Any]:
        """What this architecture reads beyond the family's common keys, in place of some `values`."""
        return {}
