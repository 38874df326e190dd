"""What the plain-torch references share: how the comparison calls a model, and how one becomes a checkpoint.

They are written from the published definitions, for architectures that transformers does not have, and use nothing of the
plugins or their layers. Attribute names are the published checkpoints', so `state_dict` has their keys.

Legend: T tokens fed, S tokens so far (S >= T), H query heads, K key/value heads, D head_dim, V vocabulary, R rotated values.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from actorllm.testing.reference import randomize
from tests.parity.families.case import VOCAB_SIZE, save_tokenizer

Past = list[tuple[Tensor, Tensor] | None]
"""Each layer's keys and values [S, K, D] so far."""


class PlainCausalLM(nn.Module):
    """Called like a causal language model of transformers, for one sequence."""

    def __init__(self, *, num_layers: int, max_positions: int, rope: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.config = SimpleNamespace(vocab_size=VOCAB_SIZE, max_position_embeddings=max_positions, rope_parameters=rope)

    def forward(self, input_ids: Tensor, *, past_key_values: Past | None = None, use_cache: bool = True) -> SimpleNamespace:
        past: Past = list(past_key_values or [None] * self.num_layers)
        logits_TV = self.logits(input_ids[0], past)
        return SimpleNamespace(logits=logits_TV[None], past_key_values=past)

    @abstractmethod
    def logits(self, ids_T: Tensor, past: Past) -> Tensor:
        """[T, V]; appends to `past`."""

    @abstractmethod
    def get_input_embeddings(self) -> nn.Module: ...

    @abstractmethod
    def get_output_embeddings(self) -> nn.Module:
        """What scales the logits; the input embeddings where the last norm does."""


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        return x_TD / (x_TD.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


class MLP(nn.Module):
    """The gated feed-forward block under its usual names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config["hidden_size"], config["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(config["hidden_size"], config["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(config["intermediate_size"], config["hidden_size"], bias=False)
        self.activation = getattr(functional, config["hidden_act"])

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x_TD)) * self.up_proj(x_TD))


def num_past(past: Past) -> int:
    """Tokens so far."""
    return 0 if past[0] is None else len(past[0][0])


def attend(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, past: Past, *, layer: int, slopes: Sequence[float] | None = None
) -> Tensor:
    """[T, H * D]: softmax of scaled scores over every earlier token, with the past's keys and values before the new ones.

    `slopes` are ALiBi's: what a head's score falls by for each token of distance (arXiv 2108.12409).
    """
    if (earlier := past[layer]) is not None:
        k_TKD, v_TKD = torch.cat((earlier[0], k_TKD)), torch.cat((earlier[1], v_TKD))
    past[layer] = (k_TKD, v_TKD)
    group = q_THD.shape[1] // k_TKD.shape[1]
    k_SHD, v_SHD = (x.repeat_interleave(group, dim=1) for x in (k_TKD, v_TKD))
    scores_HTS = torch.einsum("thd,shd->hts", q_THD, k_SHD) / q_THD.shape[-1] ** 0.5
    distance_TS = torch.arange(len(k_SHD) - len(q_THD), len(k_SHD))[:, None] - torch.arange(len(k_SHD))
    if slopes is not None:
        scores_HTS = scores_HTS - torch.tensor(slopes)[:, None, None] * distance_TS
    weights_HTS = scores_HTS.masked_fill(distance_TS < 0, float("-inf")).softmax(dim=-1)
    return torch.einsum("hts,shd->thd", weights_HTS, v_SHD).flatten(1)


def turned_halves(x_THD: Tensor, angles_TR: Tensor) -> Tensor:
    """Pairs (r, r + D/2) of each head as complex numbers, turned by the angles [T, D/2]."""
    first, second = x_THD.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.exp(1j * angles_TR)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def published_rope_angles(
    rope: Mapping[str, Any], start: int, stop: int, *, theta: float, size: int, original: int
) -> tuple[Tensor, float]:
    """Angles [T, size/2] of positions from `start` to `stop`, and what rotated values are multiplied by.

    The types of the code published with these checkpoints: none, linear, dynamic (the base grows once `stop` is past `original`
    positions) and longrope with the factors of a server whose whole context counts.
    """
    kind = rope.get("rope_type", "default")
    positions_T, exponents_F = torch.arange(start, stop).float(), torch.arange(0, size, 2).float() / size
    if kind == "dynamic" and stop > original:
        theta *= (rope["factor"] * stop / original - (rope["factor"] - 1)) ** (size / (size - 2))
    if kind == "linear":
        positions_T = positions_T / rope["factor"]
    scale, factors_F = 1.0, torch.ones(size // 2)
    if kind == "longrope":
        stretch = original / rope["original_max_position_embeddings"]
        factors_F = torch.tensor(rope["long_factor" if stretch > 1 else "short_factor"])
        scale = (1 + torch.log(torch.tensor(stretch)) / torch.log(torch.tensor(rope["original_max_position_embeddings"]))).sqrt().item()
    return positions_T[:, None] / (factors_F * theta**exponents_F), scale


def save(model: PlainCausalLM, config: Mapping[str, Any], *, seed: int, directory: Path) -> PlainCausalLM:
    """The model with random weights, saved with this config.json; weights that are tied are saved once, as the embedding."""
    model = model.eval().float()
    randomize(model, seed)
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    save_tokenizer(directory, VOCAB_SIZE)
    return model
