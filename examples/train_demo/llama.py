"""The Llama architecture in plain torch, for training: parameters have the published names, so the trained model is a
checkpoint that any Llama implementation loads. Shapes: B rows, T tokens, H heads, D head_dim, C hidden_size, V vocabulary."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02
RMS_EPS = 1e-6


@dataclass(frozen=True)
class Size:
    """What there is to choose."""

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6
    context_len: int = 1024
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def to_hf(self) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "float16",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "max_position_embeddings": self.context_len,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": RMS_EPS,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }


class Attention(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.num_heads, width = size.num_heads, size.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x_BTC: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        q_BHTD, k_BHTD, v_BHTD = (
            linear(x_BTC).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(rotated(q_BHTD, angles), rotated(k_BHTD, angles), v_BHTD, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
        self.up_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
        self.down_proj = nn.Linear(size.intermediate_size, size.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTC)) * self.up_proj(x_BTC))


class Layer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(size.hidden_size, eps=RMS_EPS)
        self.self_attn = Attention(size)
        self.post_attention_layernorm = nn.RMSNorm(size.hidden_size, eps=RMS_EPS)
        self.mlp = FeedForward(size)

    def forward(self, x_BTC: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        x_BTC = x_BTC + self.self_attn(self.input_layernorm(x_BTC), angles)
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))


class Decoder(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(size.vocab_size, size.hidden_size)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.num_layers))
        self.norm = nn.RMSNorm(size.hidden_size, eps=RMS_EPS)


class Llama(nn.Module):
    """A decoder whose output head is its embedding."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.model = Decoder(size)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.0 if is_output else INIT_STD)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """The normed states that the head reads."""
        angles = rotary_angles(self.size, ids_BT.shape[1], device=ids_BT.device)
        x_BTC = self.model.embed_tokens(ids_BT)
        for layer in self.model.layers:
            x_BTC = layer(x_BTC, angles)
        return self.model.norm(x_BTC)

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Cross entropy summed over the targets that are not negative; the head runs for these alone."""
        counts_BT = targets_BT >= 0
        logits_NV = F.linear(self.hidden(ids_BT)[counts_BT], self.model.embed_tokens.weight)
        return F.cross_entropy(logits_NV, targets_BT[counts_BT], reduction="sum")


def rotary_angles(size: Size, num_tokens: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos_TD, sin_TD) of positions 0 .. T-1; source: RoFormer, arXiv 2104.09864, halves as in Llama."""
    frequencies = size.rope_theta ** (-torch.arange(0, size.head_dim, 2, device=device) / size.head_dim)
    angles_TD = torch.outer(torch.arange(num_tokens, device=device).float(), frequencies).repeat(1, 2)
    return angles_TD.cos(), angles_TD.sin()


def rotated(x_BHTD: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys turned by their positions."""
    first, second = x_BHTD.chunk(2, -1)
    return x_BHTD * angles[0] + torch.cat((-second, first), -1) * angles[1]
