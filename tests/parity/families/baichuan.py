"""Baichuan and Baichuan 2, 7B and 13B, as their own published code computes them: a reference in plain torch.

Legend: T tokens, D hidden size.
"""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tests.parity.families.case import CONTEXT, VOCAB_SIZE, Build
from tests.parity.plain import MLP, Past, PlainCausalLM, RMSNorm, attend, num_past, published_rope_angles, save, turned_halves


def config(seed: int) -> dict[str, Any]:
    """A config.json by the keys of the published ones: even seeds are 7B models, odd ones 13B."""
    draw = random.Random(f"baichuan {seed}")
    num_heads = draw.choice((3, 4, 6, 8)) if seed % 4 == 1 else draw.choice((4, 6))
    num_heads = num_heads if num_heads % 2 == 0 else 10  # two ranks share them
    settings = {
        "architectures": ["BaichuanForCausalLM"],
        "model_type": "baichuan",
        "_from_model_config": True,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": num_heads * draw.choice((8, 12)),
        "intermediate_size": draw.choice((36, 50)),
        "num_hidden_layers": draw.choice((2, 3)),
        "num_attention_heads": num_heads,
        "hidden_act": draw.choice(("silu", "gelu", "relu")),
        "rms_norm_eps": draw.choice((1e-6, 1e-5, 1e-2)),
        "tie_word_embeddings": False,
    }
    is_second = draw.random() < 0.6
    if seed % 2:
        settings |= {"model_max_length": CONTEXT}
    else:
        settings |= {"max_position_embeddings": CONTEXT} | ({"model_max_length": CONTEXT} if is_second else {})
        settings["architectures"] = ["BaichuanForCausalLM" if is_second else "BaiChuanForCausalLM"]
    return settings | ({"z_loss_weight": 0} if is_second else {})


def published_slopes(num_heads: int) -> list[float]:
    """Of n heads, the series that starts at and has the ratio 2^(-2^-(log2 n - 3)); where n is no power of two, that of the
    power below, and every second one of the series for twice as many."""
    power = 2 ** math.floor(math.log2(num_heads))
    if power != num_heads:
        return published_slopes(power) + published_slopes(2 * power)[::2][: num_heads - power]
    first = 2.0 ** -(2.0 ** -(math.log2(num_heads) - 3))
    return [first ** (head + 1) for head in range(num_heads)]


class Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden_size = config["hidden_size"]
        self.num_heads = config["num_attention_heads"]
        self.has_alibi = "max_position_embeddings" not in config
        self.W_pack = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x_TD: Tensor, angles: Tensor, past: Past, layer: int) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in self.W_pack(x_TD).chunk(3, dim=-1))
        if self.has_alibi:
            return self.o_proj(attend(q, k, v, past, layer=layer, slopes=published_slopes(self.num_heads)))
        return self.o_proj(attend(turned_halves(q, angles), turned_halves(k, angles), v, past, layer=layer))


class Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.mlp = MLP(config)


class Baichuan(PlainCausalLM):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(num_layers=config["num_hidden_layers"], max_positions=CONTEXT)
        self.head_dim = config["hidden_size"] // config["num_attention_heads"]
        self.is_normalised = "z_loss_weight" in config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(VOCAB_SIZE, config["hidden_size"])
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(self.num_layers))
        self.model.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.lm_head = nn.Linear(config["hidden_size"], VOCAB_SIZE, bias=False)

    def logits(self, ids_T: Tensor, past: Past) -> Tensor:
        start = num_past(past)
        angles, _ = published_rope_angles({}, start, start + len(ids_T), theta=10000.0, size=self.head_dim, original=CONTEXT)
        x_TD = self.model.embed_tokens(ids_T)
        for index, layer in enumerate(self.model.layers):
            x_TD = x_TD + layer.self_attn(layer.input_layernorm(x_TD), angles, past, index)
            x_TD = x_TD + layer.mlp(layer.post_attention_layernorm(x_TD))
        weight_VD = self.lm_head.weight
        if self.is_normalised:
            weight_VD = weight_VD / weight_VD.norm(dim=-1, keepdim=True)
        return self.model.norm(x_TD) @ weight_VD.T

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.model.embed_tokens if self.is_normalised else self.lm_head


def build(seed: int, directory: Path) -> Any:
    published = config(seed)
    return save(Baichuan(published), published, seed=seed, directory=directory)


CASES: dict[str, Build] = {"BaichuanForCausalLM": build}
