"""StableLmForCausalLM: rotation of a part of each head, LayerNorms, and optionally attention beside the MLP (arXiv 2402.17834).

Legend: T tokens, D hidden size.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from actorllm.layers.batch import Batch
from actorllm.layers.linear import HeadSplit
from actorllm.layers.norm import HeadNorm, LayerNorm
from actorllm.layers.rotary import Rotary
from actorllm.layers.shard import Shard
from actorllm.models.contract import ConfigReader
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaForCausalLM, LlamaLayer


@dataclass(frozen=True, kw_only=True)
class StableLmConfig(LlamaConfig):
    """`is_parallel`: attention and MLP read the same norm, and their results are added at once."""

    absent: ClassVar = {"num_key_value_heads": 32, "layer_norm_eps": 1e-5}
    eps_key: ClassVar = "layer_norm_eps"
    is_parallel: bool

    @classmethod
    def read_rotary(cls, reader: ConfigReader, head_dim: int, *, context_len: int) -> Rotary:
        return Rotary.from_hf(head_dim, reader.rope(), context_len=context_len, partial=0.25)

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        return {
            "has_qkv_bias": reader.flag("use_qkv_bias"),
            "has_qk_norm": reader.flag("qk_layernorm"),
            "is_parallel": reader.flag("use_parallel_residual"),
        }

    def new_norm(self) -> LayerNorm:
        return LayerNorm(self.hidden_size, eps=self.norm_eps)

    def new_qk_norms(self, split: HeadSplit) -> tuple[nn.Module, nn.Module]:
        sides = (("q", split.num_heads, split.q_heads), ("k", split.num_kv_heads, split.kv_heads))
        q_norm, k_norm = (
            HeadNorm(num, self.head_dim, heads=heads, eps=self.norm_eps, name_of_head=f"{side}_layernorm.norms.{{}}")
            for side, num, heads in sides
        )
        return q_norm, k_norm


class StableLmLayer(LlamaLayer):
    def __init__(self, config: StableLmConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__(config, layer, group=group, shard=shard)
        self.is_parallel = config.is_parallel
        if self.is_parallel:
            del self.post_attention_layernorm

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        if not self.is_parallel:
            return super().forward(x_TD, batch)
        normed_TD = self.input_layernorm(x_TD)
        return x_TD + self.self_attn(normed_TD, batch) + self.mlp(normed_TD)


class StableLmForCausalLM(LlamaForCausalLM):
    config_class = StableLmConfig
    layer_class = StableLmLayer
