"""What config.json says of a model of the Gemma family: the keys that its generations share."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from actorllm.layers.activation import activation
from actorllm.layers.rotary import Rotary
from actorllm.models.contract import ConfigReader


@dataclass(frozen=True)
class GemmaConfig:
    """What the family varies. `windows[i]` limits layer i's attention (None: everything); layers with a window rotate by
    `local_rotary`, the others by `rotary`. Soft caps are None where there are none."""

    absent: ClassVar[Mapping[str, Any]] = {}
    """What transformers takes for keys that are not there at all."""

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
    has_attention_bias: bool
    attention_scale: float
    final_soft_cap: float | None
    windows: tuple[int | None, ...]
    rotary: Rotary
    local_rotary: Rotary
    attention_soft_cap: float | None = None
    has_qk_norm: bool = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json; raises `UnsupportedConfig` for what this family does not compute."""
        reader = ConfigReader({**cls.absent, **config})
        reader.neutral("hidden_act", "hidden_activation is what counts")
        reader.expect("use_bidirectional_attention", [False], "a token would see those after it")
        values: dict[str, Any] = {
            "vocab_size": reader.size("vocab_size"),
            "hidden_size": reader.size("hidden_size"),
            "intermediate_size": reader.size("intermediate_size"),
            "num_layers": reader.layers(),
            "num_heads": reader.size("num_attention_heads"),
            "num_kv_heads": reader.size("num_key_value_heads"),
            "head_dim": reader.size("head_dim"),
            "context_len": reader.size("max_position_embeddings"),
            "norm_eps": reader.number("rms_norm_eps", 1e-6),
            "activation": reader.name("hidden_activation", "gelu_pytorch_tanh"),
            "is_tied": reader.flag("tie_word_embeddings", True),
            "has_attention_bias": reader.flag("attention_bias"),
            "attention_scale": reader.number("query_pre_attn_scalar", 256.0) ** -0.5,
            "final_soft_cap": reader.optional_number("final_logit_softcapping"),
        }
        activation(values["activation"])
        read = cls(**values | cls.read_generation(reader, values))
        reader.finish()
        return read

    @classmethod
    @abstractmethod
    def read_generation(cls, reader: ConfigReader, values: Mapping[str, Any]) -> dict[str, Any]:
        """What this generation reads beside the common `values`, or in place of them."""
