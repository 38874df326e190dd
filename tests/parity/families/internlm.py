"""InternLM2, as its own published code computes it: a reference in plain torch.

Legend: T tokens, D hidden size, H query heads, K key/value heads.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from tests.parity.families.case import CONTEXT, ORIGINAL_CONTEXT, VOCAB_SIZE, Build
from tests.parity.plain import Past, PlainCausalLM, RMSNorm, attend, num_past, published_rope_angles, save, turned_halves

ROPES = (None, "dynamic", "linear")


def config(seed: int) -> dict[str, Any]:
    """A config.json by the keys of the published ones."""
    draw = random.Random(f"internlm2 {seed}")
    num_heads, kind = draw.choice((4, 6, 8)), ROPES[seed % len(ROPES)]
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "attn_implementation": "eager",
        "bias": draw.random() < 0.5,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": num_heads * draw.choice((8, 12)),
        "intermediate_size": draw.choice((36, 50)),
        "num_hidden_layers": draw.choice((2, 3)),
        "num_attention_heads": num_heads,
        "num_key_value_heads": draw.choice([count for count in (1, 2, 3, num_heads) if num_heads % count == 0]),
        "hidden_act": draw.choice(("silu", "gelu", "relu")),
        "max_position_embeddings": ORIGINAL_CONTEXT if kind == "dynamic" else CONTEXT,
        "rms_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "rope_theta": draw.choice((100, 10000, 1000000)),
        "rope_scaling": None if kind is None else {"type": kind, "factor": draw.choice((1.0, 2.0, 3.0))},
        "tie_word_embeddings": seed % 4 == 3,
        "use_cache": True,
    }


class Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden_size, num_heads = config["hidden_size"], config["num_attention_heads"]
        self.num_kv_heads, self.head_dim = config["num_key_value_heads"], hidden_size // num_heads
        self.wqkv = nn.Linear(hidden_size, (num_heads + 2 * self.num_kv_heads) * self.head_dim, bias=config["bias"])
        self.wo = nn.Linear(hidden_size, hidden_size, bias=config["bias"])

    def forward(self, x_TD: Tensor, angles: Tensor, past: Past, layer: int) -> Tensor:
        grouped = self.wqkv(x_TD).view(len(x_TD), self.num_kv_heads, -1, self.head_dim)  # queries, key and value of each group
        q_THD, k_TKD, v_TKD = grouped[:, :, :-2].flatten(1, 2), grouped[:, :, -2], grouped[:, :, -1]
        return self.wo(attend(turned_halves(q_THD, angles), turned_halves(k_TKD, angles), v_TKD, past, layer=layer))


class FeedForward(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.w1 = nn.Linear(config["hidden_size"], config["intermediate_size"], bias=False)
        self.w3 = nn.Linear(config["hidden_size"], config["intermediate_size"], bias=False)
        self.w2 = nn.Linear(config["intermediate_size"], config["hidden_size"], bias=False)
        self.activation = getattr(functional, config["hidden_act"])

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.w2(self.activation(self.w1(x_TD)) * self.w3(x_TD))


class Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.feed_forward = FeedForward(config)


class InternLM2(PlainCausalLM):
    def __init__(self, config: Mapping[str, Any]) -> None:
        scaling = config["rope_scaling"] or {}
        self.rope = {"rope_type": scaling.get("type", "default"), "factor": scaling.get("factor", 1.0)}
        super().__init__(num_layers=config["num_hidden_layers"], max_positions=config["max_position_embeddings"], rope=self.rope)
        self.theta, self.head_dim = config["rope_theta"], config["hidden_size"] // config["num_attention_heads"]
        self.model = nn.Module()
        self.model.tok_embeddings = nn.Embedding(VOCAB_SIZE, config["hidden_size"])
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(self.num_layers))
        self.model.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.output = nn.Linear(config["hidden_size"], VOCAB_SIZE, bias=False)
        if config["tie_word_embeddings"]:
            self.output.weight = self.model.tok_embeddings.weight

    def logits(self, ids_T: Tensor, past: Past) -> Tensor:
        start = num_past(past)
        original = self.config.max_position_embeddings
        angles, _ = published_rope_angles(
            self.rope, start, start + len(ids_T), theta=self.theta, size=self.head_dim, original=original
        )
        x_TD = self.model.tok_embeddings(ids_T)
        for index, layer in enumerate(self.model.layers):
            x_TD = x_TD + layer.attention(layer.attention_norm(x_TD), angles, past, index)
            x_TD = x_TD + layer.feed_forward(layer.ffn_norm(x_TD))
        return self.output(self.model.norm(x_TD))

    def get_input_embeddings(self) -> nn.Module:
        return self.model.tok_embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.output


def build(seed: int, directory: Path) -> Any:
    published = config(seed)
    return save(InternLM2(published), published, seed=seed, directory=directory)


CASES: dict[str, Build] = {"InternLM2ForCausalLM": build}
