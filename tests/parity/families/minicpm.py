"""MiniCPM, as its own published code computes it: a reference in plain torch.

Legend: T tokens, D hidden size.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tests.parity.families.case import CONTEXT, ORIGINAL_CONTEXT, VOCAB_SIZE, Build
from tests.parity.plain import MLP, Past, PlainCausalLM, RMSNorm, attend, num_past, published_rope_angles, save, turned_halves

ROPES = ("default", "longrope", "dynamic", "linear")


def config(seed: int) -> dict[str, Any]:
    """A config.json by the keys of the published ones."""
    draw = random.Random(f"minicpm {seed}")
    num_heads, head_dim, kind = draw.choice((4, 6, 8)), draw.choice((8, 12)), ROPES[seed % len(ROPES)]
    settings = {
        "architectures": ["MiniCPMForCausalLM"],
        "model_type": "minicpm",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": num_heads * head_dim,
        "intermediate_size": draw.choice((36, 50)),
        "num_hidden_layers": draw.choice((2, 3)),
        "num_attention_heads": num_heads,
        "num_key_value_heads": draw.choice([count for count in (1, 2, 3, num_heads) if num_heads % count == 0]),
        "hidden_act": draw.choice(("silu", "gelu", "relu")),
        "max_position_embeddings": ORIGINAL_CONTEXT if kind == "dynamic" else CONTEXT,
        "rms_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "rope_theta": draw.choice((100.0, 10000.0)),
        "rope_scaling": random_scaling(kind, draw, num_frequencies=head_dim // 2),
        "attention_bias": seed % 5 == 4,
        "scale_emb": draw.choice((1, 3.5, 12)),
        "scale_depth": draw.choice((1.0, 1.4)),
        "dim_model_base": draw.choice((8, 16)),
    }
    return settings if seed % 2 == 0 else settings | {"tie_word_embeddings": draw.random() < 0.3}  # absent: tied


def random_scaling(kind: str, draw: random.Random, *, num_frequencies: int) -> dict[str, Any] | None:
    """`rope_scaling` of a config.json."""
    if kind == "longrope":
        return {
            "rope_type": "longrope",
            "short_factor": [draw.uniform(0.5, 1.5) for _ in range(num_frequencies)],
            "long_factor": [draw.uniform(1.0, 6.0) for _ in range(num_frequencies)],
            "original_max_position_embeddings": draw.choice((ORIGINAL_CONTEXT, CONTEXT)),
        }
    return None if kind == "default" else {"type": kind, "factor": draw.choice((1.5, 4.0))}


class Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden_size, has_bias = config["hidden_size"], config["attention_bias"]
        self.head_dim = hidden_size // config["num_attention_heads"]
        num_kv = config["num_key_value_heads"] * self.head_dim
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=has_bias)
        self.k_proj = nn.Linear(hidden_size, num_kv, bias=has_bias)
        self.v_proj = nn.Linear(hidden_size, num_kv, bias=has_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=has_bias)

    def forward(self, x_TD: Tensor, rope: tuple[Tensor, float], past: Past, layer: int) -> Tensor:
        q, k, v = (linear(x_TD).unflatten(-1, (-1, self.head_dim)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        angles, scale = rope
        return self.o_proj(attend(turned_halves(q, angles) * scale, turned_halves(k, angles) * scale, v, past, layer=layer))


class Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.mlp = MLP(config)


class MiniCPM(PlainCausalLM):
    def __init__(self, config: Mapping[str, Any]) -> None:
        scaling = config["rope_scaling"] or {}
        self.rope = scaling | {"rope_type": scaling.get("rope_type") or scaling.get("type") or "default"}
        super().__init__(num_layers=config["num_hidden_layers"], max_positions=config["max_position_embeddings"], rope=self.rope)
        self.settings = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(VOCAB_SIZE, config["hidden_size"])
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(self.num_layers))
        self.model.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.lm_head = nn.Linear(config["hidden_size"], VOCAB_SIZE, bias=False)
        if config.get("tie_word_embeddings", True):
            self.lm_head.weight = self.model.embed_tokens.weight

    def logits(self, ids_T: Tensor, past: Past) -> Tensor:
        start, original = num_past(past), self.config.max_position_embeddings
        size, theta = self.settings["hidden_size"] // self.settings["num_attention_heads"], self.settings["rope_theta"]
        rope = published_rope_angles(self.rope, start, start + len(ids_T), theta=theta, size=size, original=original)
        depth = self.settings["scale_depth"] / self.num_layers**0.5
        x_TD = self.model.embed_tokens(ids_T) * self.settings["scale_emb"]
        for index, layer in enumerate(self.model.layers):
            x_TD = x_TD + layer.self_attn(layer.input_layernorm(x_TD), rope, past, index) * depth
            x_TD = x_TD + layer.mlp(layer.post_attention_layernorm(x_TD)) * depth
        narrower = self.settings["hidden_size"] / self.settings["dim_model_base"]
        return self.lm_head(self.model.norm(x_TD) / narrower)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def build(seed: int, directory: Path) -> Any:
    published = config(seed)
    return save(MiniCPM(published), published, seed=seed, directory=directory)


CASES: dict[str, Build] = {"MiniCPMForCausalLM": build}
