"""What config.json says of a model of the Llama family: the keys that its architectures share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from actorllm.layers.activation import activation
from actorllm.layers.linear import HeadSplit
from actorllm.layers.norm import Norm, RMSNorm
from actorllm.layers.rotary import Rotary
from actorllm.models.contract import ConfigReader


@dataclass(frozen=True)
class LlamaConfig:
    """What the family varies. `windows[i]` limits layer i's attention (None: everything)."""

    absent: ClassVar[Mapping[str, Any]] = {}
    """What transformers takes for keys that are not there at all."""
    eps_key: ClassVar[str] = "rms_norm_eps"

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_len: int
    norm_eps: float
    rotary: Rotary
    activation: str
    is_tied: bool
    windows: tuple[int | None, ...]
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_mlp_bias: bool = False
    has_qk_norm: bool = False
    embedding_scale: float = 1.0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json; raises `UnsupportedConfig` for what this family does not compute."""
        reader = ConfigReader({**cls.absent, **config})
        num_layers, num_heads = reader.layers(), reader.size("num_attention_heads")
        hidden_size, max_positions = reader.size("hidden_size"), reader.size("max_position_embeddings")
        head_dim = reader.size("head_dim", hidden_size // num_heads)
        rotary = cls.read_rotary(reader, head_dim, context_len=max_positions)
        values = cls.read_variant(reader, num_layers)
        values.setdefault("windows", (None,) * num_layers)
        values.setdefault("context_len", rotary.context_len(max_positions))
        read = cls(
            vocab_size=reader.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=reader.size("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=reader.size("num_key_value_heads", num_heads),
            head_dim=head_dim,
            norm_eps=reader.number(cls.eps_key, 1e-6),
            rotary=rotary,
            activation=reader.name("hidden_act", "silu"),
            is_tied=reader.flag("tie_word_embeddings"),
            **values,
        )
        activation(read.activation)
        reader.finish()
        return read

    @classmethod
    def read_rotary(cls, reader: ConfigReader, head_dim: int, *, context_len: int) -> Rotary:
        """The rotary embedding of heads of this size."""
        return Rotary.from_hf(head_dim, reader.rope(), context_len=context_len)

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        """What this architecture reads beyond the family's common keys."""
        has_bias = reader.flag("attention_bias")
        return {"has_qkv_bias": has_bias, "has_output_bias": has_bias, "has_mlp_bias": reader.flag("mlp_bias")}

    def new_norm(self) -> Norm:
        """A norm of hidden states."""
        return RMSNorm(self.hidden_size, eps=self.norm_eps)

    def new_qk_norms(self, split: HeadSplit) -> tuple[nn.Module, nn.Module]:
        """The norms of one layer's queries and keys."""
        return RMSNorm(self.head_dim, eps=self.norm_eps), RMSNorm(self.head_dim, eps=self.norm_eps)
