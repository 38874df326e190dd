"""The sizes of the comparison's models, random Llamas and Qwen2s. Knows no engine, and needs no torch.

Legend: O outputs, I inputs of a linear.
"""

from dataclasses import dataclass

HEAD_DIM = 64
ROPE_THETA = 10000.0
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with heads of `HEAD_DIM`. A Qwen2 has biases on its queries, keys and values."""

    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate: int
    vocab_size: int
    is_tied: bool = False
    is_qwen: bool = False

    def linears(self) -> dict[str, tuple[int, int]]:
        """Names within a layer -> (O, I)."""
        q, kv = self.num_heads * HEAD_DIM, self.num_kv_heads * HEAD_DIM
        return {
            "self_attn.q_proj": (q, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, q),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def num_read(self) -> tuple[int, int]:
        """Weights that one decode step reads: in the layers' linears, and in the head."""
        return self.num_layers * sum(o * i for o, i in self.linears().values()), self.vocab_size * self.hidden

    @property
    def num_kv(self) -> int:
        """Values that the cache keeps for a token."""
        return self.num_layers * 2 * self.num_kv_heads * HEAD_DIM

    def config(self) -> dict[str, object]:
        """As config.json has it."""
        return {
            "architectures": ["Qwen2ForCausalLM" if self.is_qwen else "LlamaForCausalLM"],
            "model_type": "qwen2" if self.is_qwen else "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": 4096,
            "rope_theta": ROPE_THETA,
            "rms_norm_eps": NORM_EPS,
            "hidden_act": "silu",
            "tie_word_embeddings": self.is_tied,
            "dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": None,
        }


SHAPES = {
    "tiny": Shape(256, 2, 4, 2, 512, 512),
    "125m": Shape(768, 12, 12, 4, 2048, 32000),
    "qwen-0.5b": Shape(896, 24, 14, 2, 4864, 151936, is_tied=True, is_qwen=True),
    "1b": Shape(2048, 22, 32, 4, 5632, 32000),
}
