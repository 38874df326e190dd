"""The plugin computes what Brook's definition says, written here in plain torch: whole sequences, no cache, no ranks."""

from pathlib import Path

import torch
from actorllm.testing.against_transformers import load_folder
from actorllm.testing.tiny import logits_in_chunks
from make_model import CONFIG, write_model
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from actorllm_brook.model import BrookForCausalLM

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8


def rotate(x_HTD: Tensor) -> Tensor:
    """Rotary positions: the halves of a head are the parts of complex numbers that turn with the position."""
    num_tokens, half = x_HTD.shape[1], HEAD_DIM // 2
    angles = torch.arange(num_tokens)[:, None] * CONFIG["rope_theta"] ** -(torch.arange(half) / half)
    turned = torch.complex(x_HTD[..., :half], x_HTD[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def by_definition(ids: list[int], weights: dict[str, Tensor]) -> Tensor:
    """Logits [T, V]."""

    def linear(x_TD: Tensor, name: str) -> Tensor:
        return x_TD @ weights[f"{name}.weight"].T

    def norm(x_TD: Tensor, name: str) -> Tensor:
        return rms_norm(x_TD, (48,), weights[f"{name}.weight"], CONFIG["rms_norm_eps"])

    embedded_TD = x_TD = weights["model.embed_tokens.weight"][ids]
    for layer in range(CONFIG["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        x_TD = weights[f"{name}.mix"][0] * x_TD + weights[f"{name}.mix"][1] * embedded_TD
        y_TD = norm(x_TD, f"{name}.input_layernorm")
        q, k, v = (linear(y_TD, f"{name}.self_attn.{part}_proj").unflatten(1, (-1, HEAD_DIM)).transpose(0, 1) for part in "qkv")
        k, v = (part.repeat_interleave(HEADS // KV_HEADS, dim=0) for part in (rotate(k), v))
        read_HTD = scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
        x_TD = x_TD + linear(read_HTD.transpose(0, 1).flatten(1), f"{name}.self_attn.o_proj")
        y_TD = norm(x_TD, f"{name}.post_attention_layernorm")
        y_TD = silu(linear(y_TD, f"{name}.mlp.gate_proj")) * linear(y_TD, f"{name}.mlp.up_proj")
        x_TD = x_TD + linear(y_TD, f"{name}.mlp.down_proj")
    return linear(norm(x_TD, "model.norm"), "lm_head")


def test_logits_are_those_of_the_definition(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    ids = torch.randint(256, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    wanted = by_definition(ids, load_file(tmp_path / "model" / "model.safetensors"))
    got = logits_in_chunks(load_folder(BrookForCausalLM, tmp_path / "model"), ids)
    assert wanted.std() > 0.5
    assert (got - wanted).abs().max() < 1e-4 * wanted.std()
