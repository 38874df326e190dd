"""ChatGLM2, ChatGLM3 and GLM-4, as their own published code computes them: a reference in plain torch.

Legend: T tokens, D hidden size, V vocabulary.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tests.parity.families.case import CONTEXT, VOCAB_SIZE, Build
from tests.parity.plain import Past, PlainCausalLM, RMSNorm, attend, num_past, save


def config(seed: int) -> dict[str, Any]:
    """A config.json by the keys of the published ones."""
    draw = random.Random(f"chatglm {seed}")
    num_heads = draw.choice((4, 6, 8))
    ratio = draw.choice((1, 4, 50)) if seed % 2 else None
    generation = draw.choice((2, 3))
    return {
        "architectures": ["ChatGLMModel" if seed % 3 else "ChatGLMForConditionalGeneration"],
        "model_type": "chatglm",
        "_name_or_path": f"THUDM/chatglm{generation}-6b-32k",
        **({"rope_ratio": ratio} if ratio else {}),
        "padded_vocab_size": VOCAB_SIZE,
        "hidden_size": num_heads * draw.choice((4, 6)),
        "ffn_hidden_size": draw.choice((36, 50)),
        "kv_channels": draw.choice((8, 12, 16)),
        "num_layers": draw.choice((2, 3)),
        "num_attention_heads": num_heads,
        "multi_query_attention": seed % 4 != 3,
        "multi_query_group_num": draw.choice([count for count in (1, 2, 3) if num_heads % count == 0]),
        "seq_length": CONTEXT,
        "layernorm_epsilon": draw.choice((1e-6, 1e-5, 1e-2)),
        "rmsnorm": seed % 5 != 4,
        "add_bias_linear": draw.random() < 0.5,
        "add_qkv_bias": draw.random() < 0.5,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "fp32_residual_connection": False,
        "original_rope": True,
        "post_layer_norm": True,
        "tie_word_embeddings": False,
    }


class Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config["num_attention_heads"], config["kv_channels"]
        self.num_groups = config["multi_query_group_num"] if config["multi_query_attention"] else None
        has_bias, num_q = config["add_bias_linear"], self.num_heads * self.head_dim
        num_kv = num_q if self.num_groups is None else self.num_groups * self.head_dim
        self.query_key_value = nn.Linear(config["hidden_size"], num_q + 2 * num_kv, bias=has_bias or config["add_qkv_bias"])
        self.dense = nn.Linear(num_q, config["hidden_size"], bias=has_bias)

    def forward(self, x_TD: Tensor, angles: Tensor, past: Past, layer: int) -> Tensor:
        mixed = self.query_key_value(x_TD)
        if self.num_groups is None:  # each head's query, key and value beside each other
            q, k, v = mixed.view(-1, self.num_heads, 3 * self.head_dim).chunk(3, dim=-1)
        else:
            heads = mixed.view(len(x_TD), -1, self.head_dim)
            q, k, v = heads.split((self.num_heads, self.num_groups, self.num_groups), dim=1)
        return self.dense(attend(turned(q, angles), turned(k, angles), v, past, layer=layer))


class MLP(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        sizes, has_bias = (config["hidden_size"], config["ffn_hidden_size"]), config["add_bias_linear"]
        self.dense_h_to_4h = nn.Linear(sizes[0], 2 * sizes[1], bias=has_bias)
        self.dense_4h_to_h = nn.Linear(sizes[1], sizes[0], bias=has_bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate, up = self.dense_h_to_4h(x_TD).chunk(2, dim=-1)
        return self.dense_4h_to_h(silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = new_norm(config), new_norm(config)
        self.self_attention, self.mlp = Attention(config), MLP(config)


def new_norm(config: Mapping[str, Any]) -> nn.Module:
    return (RMSNorm if config["rmsnorm"] else nn.LayerNorm)(config["hidden_size"], eps=config["layernorm_epsilon"])


def turned(x_THD: Tensor, angles_TR: Tensor) -> Tensor:
    """Neighbours of the first half of each head as complex numbers, turned; the second half as it is."""
    rotated, rest = x_THD.chunk(2, dim=-1)
    pairs = torch.view_as_complex(rotated.unflatten(-1, (-1, 2)).contiguous()) * torch.exp(1j * angles_TR)[:, None]
    return torch.cat((torch.view_as_real(pairs).flatten(-2), rest), dim=-1)


class ChatGLM(PlainCausalLM):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(num_layers=config["num_layers"], max_positions=config["seq_length"])
        self.head_dim, self.ratio = config["kv_channels"], config.get("rope_ratio", 1)
        self.is_second = "chatglm2" in config["_name_or_path"]
        self.transformer = nn.Module()
        self.transformer.embedding = nn.Module()
        self.transformer.embedding.word_embeddings = nn.Embedding(VOCAB_SIZE, config["hidden_size"])
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(Layer(config) for _ in range(self.num_layers))
        self.transformer.encoder.final_layernorm = new_norm(config)
        self.transformer.output_layer = nn.Linear(config["hidden_size"], VOCAB_SIZE, bias=False)
        self.transformer.rotary_pos_emb = nn.Module()
        self.transformer.rotary_pos_emb.register_buffer("inv_freq", torch.ones(self.head_dim // 4))  # in the files, and not read

    def angles(self, start: int, stop: int) -> Tensor:
        """ChatGLM2 32k divides positions by the ratio; ChatGLM3 32k and GLM-4 multiply the base 10000."""
        positions = torch.arange(start, stop) / (self.ratio if self.is_second else 1)
        size = self.head_dim // 2
        theta = 10000.0 * (1 if self.is_second else self.ratio)
        return positions[:, None] * theta ** (-torch.arange(0, size, 2) / size)

    def logits(self, ids_T: Tensor, past: Past) -> Tensor:
        angles = self.angles(num_past(past), num_past(past) + len(ids_T))
        x_TD = self.transformer.embedding.word_embeddings(ids_T)
        for index, layer in enumerate(self.transformer.encoder.layers):
            x_TD = x_TD + layer.self_attention(layer.input_layernorm(x_TD), angles, past, index)
            x_TD = x_TD + layer.mlp(layer.post_attention_layernorm(x_TD))
        return self.transformer.output_layer(self.transformer.encoder.final_layernorm(x_TD))

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.embedding.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.transformer.output_layer


def build(seed: int, directory: Path) -> Any:
    published = config(seed)
    return save(ChatGLM(published), published, seed=seed, directory=directory)


CASES: dict[str, Build] = {"ChatGLMModel": build}
