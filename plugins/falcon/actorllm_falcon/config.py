"""What config.json says of a Falcon model: three layouts under one architecture's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actorllm.layers.activation import activation
from actorllm.layers.rotary import Rotary
from actorllm.models.contract import ConfigReader, UnsupportedConfig

TRAINED_LEN = 2048
"""What all Falcon models without `max_position_embeddings` in their files were trained with."""


@dataclass(frozen=True)
class FalconConfig:
    """What the family varies. Without `rotary`, positions are ALiBi's.

    `norms` names each layer's norms in the checkpoint: one or two that norm the inputs of attention and MLP side by side,
    or, if not `is_parallel`, one before each.
    """

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
    has_bias: bool
    has_packed_qkv: bool
    is_parallel: bool
    norms: tuple[str, ...]
    rotary: Rotary | None

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "FalconConfig":
        """Read config.json; raises `UnsupportedConfig` for what this family does not compute."""
        reader = ConfigReader(config, aliases={"n_embed": "hidden_size"})
        hidden_size, num_heads = reader.size("hidden_size"), reader.size("num_attention_heads")
        head_dim, max_positions = reader.head_dim(hidden_size, num_heads), reader.size("max_position_embeddings", TRAINED_LEN)
        rope = Rotary.from_hf(head_dim, reader.rope(), context_len=max_positions)
        rotary = None if reader.flag("alibi") else rope
        reader.expect("apply_residual_connection_post_layernorm", [False], "no Falcon adds its normed input")
        intermediate_size = reader.size("ffn_hidden_size", 4 * hidden_size)
        reader.expect("ff_factor", [intermediate_size / hidden_size], "ffn_hidden_size decides")
        read = cls(
            vocab_size=reader.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=reader.layers(),
            num_heads=num_heads,
            head_dim=head_dim,
            context_len=rotary.context_len(max_positions) if rotary else max_positions,
            norm_eps=reader.number("layer_norm_epsilon", 1e-5),
            activation=reader.name("activation", "gelu"),
            is_tied=reader.flag("tie_word_embeddings", True),
            has_bias=reader.flag("bias"),
            rotary=rotary,
            **read_layout(reader, num_heads),
        )
        activation(read.activation)
        reader.finish()
        return read


def read_layout(reader: ConfigReader, num_heads: int) -> dict[str, Any]:
    """How a layer is built: of the new decoder (40B), or of the old one with one key/value head (7B) or all (RW)."""
    is_new, is_parallel = reader.flag("new_decoder_architecture"), reader.flag("parallel_attn", True)
    is_multi_query = reader.flag("multi_query", True)
    num_norms = reader.size("num_ln_in_parallel_attn", 2 if is_new else 1, most=2)
    if is_new and not is_parallel:
        raise UnsupportedConfig("config.json: new_decoder_architecture with parallel_attn = false is no Falcon that exists")
    if num_norms == 2 and not is_new and is_parallel:
        raise UnsupportedConfig("config.json: num_ln_in_parallel_attn = 2 belongs to new_decoder_architecture")
    if is_new:
        num_kv_heads = reader.size("num_kv_heads", num_heads)
    elif is_multi_query:
        num_kv_heads = 1
        reader.neutral("num_kv_heads", "multi_query decides")
    else:
        num_kv_heads = num_heads
        reader.expect("num_kv_heads", [num_heads], "without multi_query the old decoder has as many as other heads")
    if not is_parallel:
        norms = ("input_layernorm", "post_attention_layernorm")
    else:
        norms = ("ln_attn", "ln_mlp") if num_norms == 2 else ("input_layernorm",)
    has_packed_qkv = is_new or not is_multi_query
    return {"num_kv_heads": num_kv_heads, "has_packed_qkv": has_packed_qkv, "is_parallel": is_parallel, "norms": norms}
