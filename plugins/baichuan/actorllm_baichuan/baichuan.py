"""BaichuanForCausalLM: Baichuan and Baichuan 2, 7B with rotary positions and 13B with ALiBi (arXiv 2309.10305).

Legend: T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from actorllm.layers.attention import Attention, alibi_slopes
from actorllm.layers.batch import Batch
from actorllm.layers.embedding import Head
from actorllm.layers.shard import Shard
from actorllm.models.contract import ConfigReader, UnsupportedConfig
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaAttention, LlamaForCausalLM, LlamaLayer

VOCAB_SIZE_OF_2 = 125696
HIDDEN_SIZE_OF_7B, HIDDEN_SIZE_OF_13B = 4096, 5120


@dataclass(frozen=True)
class BaichuanConfig(LlamaConfig):
    """Only the 7B models have `max_position_embeddings`; only Baichuan 2 was trained with a z-loss or has its vocabulary."""

    has_alibi: bool = False
    has_normalised_head: bool = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        longest, length = config.get("max_position_embeddings"), config.get("model_max_length")
        has_alibi = longest is None and length is not None
        if config.get("hidden_size") == (HIDDEN_SIZE_OF_7B if has_alibi else HIDDEN_SIZE_OF_13B):
            raise UnsupportedConfig(
                "config.json: max_position_embeddings belongs to Baichuan 7B (hidden_size 4096, rotary positions) and is absent in "
                "13B (hidden_size 5120, ALiBi), which has model_max_length; these keys contradict each other"
            )
        context_len = ConfigReader(config).size("model_max_length") if has_alibi else longest
        read = super().from_hf({**config, "max_position_embeddings": context_len})
        read = replace(read, has_alibi=has_alibi, has_normalised_head=read.has_normalised_head or read.vocab_size == VOCAB_SIZE_OF_2)
        if read.has_normalised_head and read.is_tied:
            raise UnsupportedConfig("config.json: tie_word_embeddings is not implemented for Baichuan 2, whose head is normalised")
        return read

    @classmethod
    def read_variant(cls, reader: ConfigReader, num_layers: int) -> dict[str, Any]:
        reader.neutral("model_max_length", "of the tokenizer in 7B, read above in 13B")
        reader.neutral("_from_model_config", "a note of the writer")
        return {"has_normalised_head": reader.take("z_loss_weight") is not None}


class BaichuanAttention(LlamaAttention):
    qkv_names: ClassVar = "W_pack"

    def __init__(self, config: BaichuanConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__(config, layer, group=group, shard=shard)
        if config.has_alibi:
            slopes = alibi_slopes(config.num_heads)[slice(*self.qkv_proj.split.q_heads)]
            self.attention = Attention(layer, group=group, scale=config.head_dim**-0.5, slopes=slopes)
        self.has_alibi = config.has_alibi

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        if not self.has_alibi:
            return super().forward(x_TD, batch)
        q, k, v = self.qkv_proj.qkv(x_TD)
        return self.o_proj(self.attention(q, k, v, batch).flatten(1))


class BaichuanLayer(LlamaLayer):
    attention_class = BaichuanAttention


class BaichuanForCausalLM(LlamaForCausalLM):
    config_class = BaichuanConfig
    layer_class = BaichuanLayer
    example_config = {
        "model_type": "baichuan", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "model_max_length": 64, "z_loss_weight": 0,
    }  # fmt: skip

    def __init__(self, config: BaichuanConfig, shard: Shard) -> None:
        super().__init__(config, shard)
        if config.has_normalised_head:
            self.lm_head = Head(config.hidden_size, config.vocab_size, shard=shard, is_normalised=True)

    def prepare(self, batch: Batch) -> Any:
        return None if self.config.has_alibi else super().prepare(batch)
