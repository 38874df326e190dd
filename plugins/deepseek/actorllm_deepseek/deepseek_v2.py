"""DeepseekV2ForCausalLM: latent attention, shared and routed experts (arXiv 2405.04434).

Legend: T tokens, D hidden size, H heads of this rank, C a latent and its rotated key.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from actorllm.layers.activation import gated
from actorllm.layers.batch import Batch
from actorllm.layers.embedding import Embedding, Head
from actorllm.layers.experts import Experts, ExpertSizes, Router
from actorllm.layers.latent_attention import LatentAttention, LatentHeads
from actorllm.layers.linear import ColumnLinear, HeadSplit, RowLinear
from actorllm.layers.mlp import GatedMLP
from actorllm.layers.norm import RMSNorm
from actorllm.layers.rotary import RotaryTables
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheBuffer, CacheGroup, CausalLM
from actorllm_deepseek.config import DeepseekConfig

COMPRESSION_EPS = 1e-6
"""The norms of compressed queries and latents have this one, whatever `rms_norm_eps` is."""


class DeepseekAttention(nn.Module):
    def __init__(self, config: DeepseekConfig, layer: int, *, shard: Shard) -> None:
        super().__init__()
        self.sizes = sizes = config.attention
        hidden, bias = config.hidden_size, config.has_attention_bias
        head_dim, whole = sizes.key + sizes.rotated, Shard()
        split = HeadSplit.of(config.num_heads, config.num_heads, head_dim=head_dim, shard=shard)
        num_q = config.num_heads * head_dim
        if sizes.query_rank is None:
            self.q_proj = ColumnLinear(hidden, num_q, name="q_proj", shard=shard, unit=head_dim)
        else:
            self.q_a_proj = ColumnLinear(hidden, sizes.query_rank, name="q_a_proj", shard=whole, bias=bias)
            self.q_a_layernorm = RMSNorm(sizes.query_rank, eps=COMPRESSION_EPS)
            self.q_b_proj = ColumnLinear(sizes.query_rank, num_q, name="q_b_proj", shard=shard, unit=head_dim)
        name, num_latent = "kv_a_proj_with_mqa", sizes.latent + sizes.rotated
        self.kv_a_proj_with_mqa = ColumnLinear(hidden, num_latent, name=name, shard=whole, bias=bias)
        self.kv_a_layernorm = RMSNorm(sizes.latent, eps=COMPRESSION_EPS)
        self.kv_b_proj = LatentHeads(split, latent_size=sizes.latent, key_size=sizes.key, value_size=sizes.value)
        self.attention = LatentAttention(layer, group=0, latent_size=sizes.latent, scale=sizes.scale)
        cols = (split.q_heads[0] * sizes.value, split.q_heads[1] * sizes.value)
        self.o_proj = RowLinear(config.num_heads * sizes.value, hidden, shard=shard, cols=cols, bias=bias)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        sizes = self.sizes
        q = self.q_proj(x_TD) if sizes.query_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD)))
        q_THK, q_THP = q.view(len(q), -1, sizes.key + sizes.rotated).split([sizes.key, sizes.rotated], dim=-1)
        latent, key = self.kv_a_proj_with_mqa(x_TD).split([sizes.latent, sizes.rotated], dim=-1)
        q_THR, latent_TR = self.kv_b_proj.fold(q_THK), self.kv_a_layernorm(latent)
        mixed_THR = self.attention(q_THR, batch, q_THP=q_THP, latent_TR=latent_TR, key_TP=key, angles=batch.tables)
        return self.o_proj(self.kv_b_proj.values(mixed_THR).flatten(1))


class DeepseekMoE(nn.Module):
    def __init__(self, config: DeepseekConfig, *, shard: Shard) -> None:
        super().__init__()
        self.gate = Router(config.hidden_size, config.routing)
        sizes = ExpertSizes(config.routing.num_experts, config.hidden_size, config.expert_size)
        self.experts = Experts(sizes, gated(config.activation), shard=shard)
        if config.shared_size:
            self.shared_experts = mlp(config, config.shared_size, shard=shard)
        self.has_shared = config.shared_size > 0

    def forward(self, x_TD: Tensor) -> Tensor:
        routed_TD = self.experts(x_TD, *self.gate(x_TD))
        return routed_TD + self.shared_experts(x_TD) if self.has_shared else routed_TD


class DeepseekLayer(nn.Module):
    def __init__(self, config: DeepseekConfig, layer: int, *, shard: Shard) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = DeepseekAttention(config, layer, shard=shard)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        is_dense = layer < config.num_dense_layers
        self.mlp = mlp(config, config.intermediate_size, shard=shard) if is_dense else DeepseekMoE(config, shard=shard)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), batch)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class DeepseekModel(nn.Module):
    def __init__(self, config: DeepseekConfig, shard: Shard) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DeepseekLayer(config, layer, shard=shard) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)


class DeepseekV2ForCausalLM(CausalLM):
    config_class = DeepseekConfig
    ignored_tensors = {"*.rotary_emb.inv_freq": "recomputed from the config"}
    example_config: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "q_lora_rank": None, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
        "v_head_dim": 6, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }  # fmt: skip

    def __init__(self, config: DeepseekConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        self.model = DeepseekModel(config, shard)
        tied = self.model.embed_tokens if config.is_tied else None
        self.lm_head = Head(config.hidden_size, config.vocab_size, shard=shard, tied=tied)

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        """One latent and one rotated key a token, which every rank holds."""
        sizes = self.config.attention
        latent = CacheBuffer("latent", (sizes.latent + sizes.rotated,), parts=(sizes.latent, sizes.rotated))
        return (CacheGroup("latent", tuple(range(self.config.num_layers)), (latent,)),)

    def tied_tensors(self) -> dict[str, str]:
        return {"lm_head.weight": "model.embed_tokens.weight"} if self.config.is_tied else {}

    def prepare(self, batch: Batch) -> RotaryTables:
        assert self.model.norm.weight is not None, "the model has no weights yet"
        return self.config.rotary.tables(batch.positions_T, self.model.norm.weight.dtype)

    def embed(self, batch: Batch) -> Tensor:
        return self.model.embed_tokens(batch.token_ids_T, batch.given)

    def layer(self, index: int) -> nn.Module:
        return self.model.layers[index]

    def norm(self, state: Tensor) -> Tensor:
        return self.model.norm(state)

    def head(self, hidden_TD: Tensor) -> Tensor:
        return self.lm_head(hidden_TD)


def mlp(config: DeepseekConfig, size: int, *, shard: Shard) -> GatedMLP:
    """An MLP that every token takes."""
    return GatedMLP(config.hidden_size, size, activation_name=config.activation, shard=shard, bias=config.has_mlp_bias)
