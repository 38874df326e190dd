"""BrookForCausalLM: a Llama whose layers mix the embedding of their token into the hidden state, by two learned numbers each.

Legend: T tokens, D hidden size.
"""

# The checkpoint's tensors:
#   lm_head.weight [256, 48]
#   model.embed_tokens.weight [256, 48]
#   model.layers.{0..2}.input_layernorm.weight [48]
#   model.layers.{0..2}.mix [2]
#   model.layers.{0..2}.mlp.down_proj.weight [48, 64]
#   model.layers.{0..2}.mlp.gate_proj.weight [64, 48]
#   model.layers.{0..2}.mlp.up_proj.weight [64, 48]
#   model.layers.{0..2}.post_attention_layernorm.weight [48]
#   model.layers.{0..2}.self_attn.k_proj.weight [16, 48]
#   model.layers.{0..2}.self_attn.o_proj.weight [48, 48]
#   model.layers.{0..2}.self_attn.q_proj.weight [48, 48]
#   model.layers.{0..2}.self_attn.v_proj.weight [16, 48]
#   model.norm.weight [48]

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from actorllm.layers.activation import activation
from actorllm.layers.attention import Attention
from actorllm.layers.batch import Batch
from actorllm.layers.embedding import Embedding, Head
from actorllm.layers.linear import HeadSplit, QKVLinear, RowLinear
from actorllm.layers.mlp import GatedMLP
from actorllm.layers.norm import RMSNorm
from actorllm.layers.rotary import Rotary, RotaryTables
from actorllm.layers.shard import Shard
from actorllm.layers.weight import Weight
from actorllm.models.contract import CacheBuffer, CacheGroup, CausalLM, ConfigReader, window_groups
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """What config.json says. `windows[i]` limits layer i's attention (None: everything)."""

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
    has_attention_bias: bool
    has_mlp_bias: bool
    windows: tuple[int | None, ...]

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json; raises `UnsupportedConfig` for a key that nobody implemented."""
        reader = ConfigReader(config)
        num_layers, num_heads = reader.layers(), reader.size("num_attention_heads")
        hidden_size, max_positions = reader.size("hidden_size"), reader.size("max_position_embeddings")
        head_dim = reader.size("head_dim", hidden_size // num_heads)
        rotary = Rotary.from_hf(head_dim, reader.rope(), context_len=max_positions)
        window, first_window = reader.optional_size("sliding_window"), reader.size("max_window_layers", 0, least=0)
        if not reader.flag("use_sliding_window", True):
            window = None
        reader.expect("mix_embedding", [True], "a Brook that mixes nothing in is a Llama")
        read = cls(
            vocab_size=reader.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=reader.size("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=reader.size("num_key_value_heads", num_heads),
            head_dim=head_dim,
            context_len=rotary.context_len(max_positions),
            norm_eps=reader.number("rms_norm_eps", 1e-6),
            rotary=rotary,
            activation=reader.name("hidden_act", "silu"),
            is_tied=reader.flag("tie_word_embeddings"),
            has_attention_bias=reader.flag("attention_bias"),
            has_mlp_bias=reader.flag("mlp_bias"),
            windows=reader.layer_windows(window, by_default=[layer >= first_window for layer in range(num_layers)]),
        )
        activation(read.activation)
        reader.finish()
        return read


class SelfAttention(nn.Module):
    def __init__(self, config: Config, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        split = HeadSplit.of(config.num_heads, config.num_kv_heads, head_dim=config.head_dim, shard=shard)
        num_q = config.num_heads * config.head_dim
        self.qkv_proj = QKVLinear(config.hidden_size, split, bias=config.has_attention_bias)
        self.o_proj = RowLinear(num_q, config.hidden_size, shard=shard, cols=split.q_rows, bias=config.has_attention_bias)
        self.attention = Attention(layer, group=group, scale=config.head_dim**-0.5, window=config.windows[layer])

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.qkv_proj.qkv(x_TD)
        rotary: RotaryTables = batch.tables
        return self.o_proj(self.attention(rotary.apply(q), rotary.apply(k), v, batch).flatten(1))


class State(NamedTuple):
    """What goes from layer to layer: the hidden state, and the embeddings that each layer mixes into it."""

    x_TD: Tensor
    embedded_TD: Tensor


class Layer(nn.Module):
    def __init__(self, config: Config, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        self.mix = Weight((2,))
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = SelfAttention(config, layer, group=group, shard=shard)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = GatedMLP(
            config.hidden_size, config.intermediate_size, activation_name=config.activation, shard=shard, bias=config.has_mlp_bias
        )

    def forward(self, state: State, batch: Batch) -> State:
        keep, again = self.mix()
        x_TD = keep * state.x_TD + again * state.embedded_TD
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), batch)
        return State(x_TD + self.mlp(self.post_attention_layernorm(x_TD)), state.embedded_TD)


class Model(nn.Module):
    def __init__(self, config: Config, *, groups: tuple[int, ...], shard: Shard) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer, group=group, shard=shard) for layer, group in enumerate(groups))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)


class BrookForCausalLM(CausalLM):
    config_class = Config
    example_config = json.loads((Path(__file__).parent / "tiny_config.json").read_text())
    ignored_tensors: ClassVar = {"*.rotary_emb.inv_freq": "recomputed from the config"}

    def __init__(self, config: Config, shard: Shard) -> None:
        super().__init__(config, shard)
        split = HeadSplit.of(config.num_heads, config.num_kv_heads, head_dim=config.head_dim, shard=shard)
        per_token = (split.num_local_kv_heads, config.head_dim)
        self._groups, layer_groups = window_groups(config.windows, (CacheBuffer("k", per_token), CacheBuffer("v", per_token)))
        self.model = Model(config, groups=layer_groups, shard=shard)
        tied = self.model.embed_tokens if config.is_tied else None
        self.lm_head = Head(config.hidden_size, config.vocab_size, shard=shard, tied=tied)

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        return self._groups

    def tied_tensors(self) -> dict[str, str]:
        return {"lm_head.weight": "model.embed_tokens.weight"} if self.config.is_tied else {}

    def prepare(self, batch: Batch) -> RotaryTables:
        assert self.model.norm.weight is not None, "the model has no weights yet"
        return self.config.rotary.tables(batch.positions_T, self.model.norm.weight.dtype)

    def embed(self, batch: Batch) -> State:
        embedded_TD = self.model.embed_tokens(batch.token_ids_T, batch.given)
        return State(embedded_TD, embedded_TD)

    def layer(self, index: int) -> nn.Module:
        return self.model.layers[index]

    def norm(self, state: State) -> Tensor:
        return self.model.norm(state.x_TD)

    def head(self, hidden_TD: Tensor) -> Tensor:
        return self.lm_head(hidden_TD)
