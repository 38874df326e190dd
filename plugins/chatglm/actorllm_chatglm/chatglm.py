"""ChatGLMModel: ChatGLM2, ChatGLM3 and GLM-4 9B as first published (arXiv 2406.12793): half of each head is rotated, by
interleaved pairs; queries share a few key and value heads.

Legend: T tokens, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from actorllm.layers.attention import Attention
from actorllm.layers.batch import Batch
from actorllm.layers.linear import HeadSplit, PackedQKVLinear, QKVLinear, RowLinear
from actorllm.layers.mlp import GatedMLP
from actorllm.layers.norm import LayerNorm, Norm
from actorllm.layers.rotary import Rotary
from actorllm.layers.shard import Shard
from actorllm.models.contract import ConfigReader, UnsupportedConfig
from actorllm_llama.config import LlamaConfig
from actorllm_llama.llama import LlamaForCausalLM

NEUTRAL = {
    "vocab_size": "padded_vocab_size counts",
    "tie_word_embeddings": "the head always has weights of its own",
    "apply_query_key_layer_scaling": "divides scores before the softmax and multiplies them again, which only changes rounding",
    "attention_softmax_in_fp32": "attention is always exact in that",
    "bias_dropout_fusion": "a choice of kernels",
    "original_rope": "is read by no published code",
    "prefix_projection": "has a meaning with pre_seq_len only",
    "classifier_dropout": "training",
}


@dataclass(frozen=True, kw_only=True)
class ChatGLMConfig(LlamaConfig):
    """`is_grouped`: all queries, then all keys, then all values lie in the fused projection; else those of each head."""

    has_rms_norm: bool
    is_grouped: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        if "position_encoding_2d" in config:
            raise UnsupportedConfig("config.json is that of the first ChatGLM, which is not implemented; ChatGLM2 and later are")
        reader = ConfigReader(config, aliases={"num_hidden_layers": "num_layers"})
        num_layers, num_heads, hidden_size = reader.layers("num_layers"), reader.size("num_attention_heads"), reader.size("hidden_size")
        head_dim, context_len = reader.size("kv_channels", 128), reader.size("seq_length", 2048)
        is_grouped, num_groups = reader.flag("multi_query_attention"), reader.size("multi_query_group_num", 1)
        has_bias = reader.flag("add_bias_linear")
        for key, value in (("post_layer_norm", True), ("apply_residual_connection_post_layernorm", False)):
            reader.expect(key, [value], "only the order of norms of the published models is known")
        reader.expect("fp32_residual_connection", [False], "the residual stream has the precision of the weights")
        reader.expect("interleaved_qkv", [False], "only the layout of the published models is known")
        reader.expect("quantization_bit", [0], "convert the checkpoint to unquantized weights")
        reader.expect("pre_seq_len", [0], "learned prefixes are not read")
        for key, reason in NEUTRAL.items():
            reader.neutral(key, reason)
        read = cls(
            vocab_size=reader.size("padded_vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=reader.size("ffn_hidden_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_groups if is_grouped else num_heads,
            head_dim=head_dim,
            context_len=context_len,
            norm_eps=reader.number("layernorm_epsilon", 1e-5),
            rotary=_rotary(head_dim, reader.number("rope_ratio", 1.0), name=str(config.get("_name_or_path")), context_len=context_len),
            activation="silu",
            is_tied=False,
            windows=(None,) * num_layers,
            has_qkv_bias=reader.flag("add_qkv_bias") or has_bias,
            has_output_bias=has_bias,
            has_mlp_bias=has_bias,
            has_rms_norm=reader.flag("rmsnorm", True),
            is_grouped=is_grouped,
        )
        reader.finish()
        return read

    def new_norm(self) -> Norm:
        return super().new_norm() if self.has_rms_norm else LayerNorm(self.hidden_size, eps=self.norm_eps)


def _rotary(head_dim: int, ratio: float, *, name: str, context_len: int) -> Rotary:
    """What `rope_ratio` means is decided by code that is not run: ChatGLM2 32k divides positions by it, and later models
    multiply the base. Their config.json differ in the model's `name` alone."""
    rope = {"rope_theta": 10000.0 * ratio}
    if "chatglm2" in name.lower().replace("-", ""):
        rope = {"rope_type": "linear", "factor": ratio}
    return Rotary.from_hf(head_dim, rope, context_len=context_len, partial=0.5, is_interleaved=True)


class ChatGLMAttention(nn.Module):
    def __init__(self, config: ChatGLMConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        split = HeadSplit.of(config.num_heads, config.num_kv_heads, head_dim=config.head_dim, shard=shard)
        num_q, name = config.num_heads * config.head_dim, "query_key_value"
        if config.is_grouped:
            self.query_key_value = QKVLinear(config.hidden_size, split, bias=config.has_qkv_bias, names=name)
        else:
            self.query_key_value = PackedQKVLinear(config.hidden_size, split, name=name, bias=config.has_qkv_bias)
        self.dense = RowLinear(num_q, config.hidden_size, shard=shard, cols=split.q_rows, bias=config.has_output_bias)
        self.attention = Attention(layer, group=group, scale=config.head_dim**-0.5)

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.query_key_value.qkv(x_TD)
        return self.dense(self.attention(q, k, v, batch, angles=batch.tables).flatten(1))


class ChatGLMLayer(nn.Module):
    def __init__(self, config: ChatGLMConfig, layer: int, *, group: int, shard: Shard) -> None:
        super().__init__()
        self.input_layernorm = config.new_norm()
        self.self_attention = ChatGLMAttention(config, layer, group=group, shard=shard)
        self.post_attention_layernorm = config.new_norm()
        self.mlp = GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            activation_name=config.activation,
            shard=shard,
            bias=config.has_mlp_bias,
            names=("dense_h_to_4h", "dense_4h_to_h"),
        )

    def forward(self, x_TD: Tensor, batch: Batch) -> Tensor:
        x_TD = x_TD + self.self_attention(self.input_layernorm(x_TD), batch)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class ChatGLMModel(LlamaForCausalLM):
    config_class = ChatGLMConfig
    layer_class = ChatGLMLayer
    renamed_prefixes = {
        "transformer.embedding.word_embeddings.": "model.embed_tokens.",
        "transformer.encoder.final_layernorm.": "model.norm.",
        "transformer.encoder.layers.": "model.layers.",
        "transformer.output_layer.": "lm_head.",
    }
    ignored_tensors: ClassVar[Mapping[str, str]] = {"transformer.rotary_pos_emb.inv_freq": "recomputed from the config"}
    example_config = {
        "model_type": "chatglm", "padded_vocab_size": 96, "hidden_size": 32, "ffn_hidden_size": 48, "num_layers": 2, "kv_channels": 8,
        "num_attention_heads": 4, "multi_query_attention": True, "multi_query_group_num": 2, "seq_length": 64, "add_qkv_bias": True,
    }  # fmt: skip
