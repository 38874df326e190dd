"""What config.json says of a DeepSeek model with latent attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from actorllm.layers.activation import activation
from actorllm.layers.experts import Routing
from actorllm.layers.rope_types import Yarn, yarn_mscale
from actorllm.layers.rotary import Rotary
from actorllm.models.contract import ConfigReader, UnsupportedConfig


@dataclass(frozen=True)
class AttentionSizes:
    """Sizes of latent attention: of the compressed query (None: it is not compressed), of the latent, and of one head's
    unrotated key, rotated key and value. Scores are multiplied by `scale`."""

    query_rank: int | None
    latent: int
    key: int
    rotated: int
    value: int
    scale: float


@dataclass(frozen=True)
class DeepseekConfig:
    """The first `num_dense_layers` layers have an MLP of `intermediate_size`, the others experts of `expert_size`, and beside
    them an MLP of `shared_size` for every token (0: none)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    context_len: int
    norm_eps: float
    attention: AttentionSizes
    rotary: Rotary
    activation: str
    is_tied: bool
    has_attention_bias: bool
    has_mlp_bias: bool
    num_dense_layers: int
    expert_size: int
    shared_size: int
    routing: Routing

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json; raises `UnsupportedConfig` for what this family does not compute."""
        reader = ConfigReader({"q_lora_rank": 1536, **config})
        num_heads, max_positions = reader.size("num_attention_heads"), reader.size("max_position_embeddings")
        attention, rotary = read_attention(reader, num_heads, max_positions)
        expert_size = reader.size("moe_intermediate_size")
        read = cls(
            vocab_size=reader.size("vocab_size"),
            hidden_size=reader.size("hidden_size"),
            intermediate_size=reader.size("intermediate_size"),
            num_layers=reader.layers(),
            num_heads=num_heads,
            context_len=rotary.context_len(max_positions),
            norm_eps=reader.number("rms_norm_eps", 1e-6),
            attention=attention,
            rotary=rotary,
            activation=reader.name("hidden_act", "silu"),
            is_tied=reader.flag("tie_word_embeddings"),
            has_attention_bias=reader.flag("attention_bias"),
            has_mlp_bias=reader.flag("mlp_bias"),
            num_dense_layers=reader.size("first_k_dense_replace", 0, least=0),
            expert_size=expert_size,
            shared_size=expert_size * reader.size("n_shared_experts", least=0),
            routing=read_routing(reader),
        )
        activation(read.activation)
        for key in ("aux_loss_alpha", "seq_aux", "output_router_logits"):
            reader.neutral(key, "training")
        reader.neutral("ep_size", "how the experts were spread over devices")
        reader.finish()
        return read


def read_attention(reader: ConfigReader, num_heads: int, max_positions: int) -> tuple[AttentionSizes, Rotary]:
    """The sizes of a head and its rotary positions; yarn's `mscale_all_dim` corrects the scale of the scores, too."""
    key, rotated = reader.size("qk_nope_head_dim"), reader.size("qk_rope_head_dim")
    reader.expect("num_key_value_heads", [num_heads], "every head reads the one latent")
    reader.expect("head_dim", [rotated], "it is another name of qk_rope_head_dim")
    reader.expect("qk_head_dim", [key + rotated], "it is the sum of qk_nope_head_dim and qk_rope_head_dim")
    rope = reader.rope()
    rotary = Rotary.from_hf(rotated, rope, context_len=max_positions, is_interleaved=True)
    scale = (key + rotated) ** -0.5
    if isinstance(rotary.type, Yarn) and rope.get("mscale_all_dim"):
        scale *= yarn_mscale(rotary.type.factor, rope["mscale_all_dim"]) ** 2
    sizes = AttentionSizes(
        query_rank=reader.optional_size("q_lora_rank"),
        latent=reader.size("kv_lora_rank"),
        key=key,
        rotated=rotated,
        value=reader.size("v_head_dim"),
        scale=scale,
    )
    return sizes, rotary


def read_routing(reader: ConfigReader) -> Routing:
    """How experts are chosen: from all of them, or from the best groups."""
    reader.expect("norm_topk_prob", [False], "published models do not, and their code and transformers disagree on it")
    reader.expect("scoring_func", ["softmax"], "DeepSeek-V2 knows no other")
    reader.expect("moe_layer_freq", [1], "every layer after the dense ones has experts")
    method, num_groups, top_groups = reader.name("topk_method", "greedy"), 1, 1
    if method == "group_limited_greedy":
        num_groups, top_groups = reader.size("n_group"), reader.size("topk_group")
    elif method == "greedy":
        for key in ("n_group", "topk_group"):
            reader.neutral(key, "greedy choice knows no groups")
    else:
        raise UnsupportedConfig(f"config.json: topk_method {method!r} is not implemented; known are greedy, group_limited_greedy")
    return Routing(
        num_experts=reader.size("n_routed_experts"),
        top_k=reader.size("num_experts_per_tok"),
        scale=reader.number("routed_scaling_factor", 1.0),
        num_groups=num_groups,
        top_groups=top_groups,
    )
