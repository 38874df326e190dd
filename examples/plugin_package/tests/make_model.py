"""Writes a Brook model with random weights, as its authors would publish one."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONFIG = {
    "architectures": ["BrookForCausalLM"],
    "model_type": "brook",
    "vocab_size": 256,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "mix_embedding": True,
}


def write_model(folder: Path) -> None:
    """config.json, model.safetensors and tokenizer.json; a token is a byte."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    shapes = {"model.embed_tokens.weight": (256, 48), "model.norm.weight": (48,), "lm_head.weight": (256, 48)}
    for layer in range(3):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.mix": (2,), f"{name}.input_layernorm.weight": (48,), f"{name}.post_attention_layernorm.weight": (48,)}
        shapes |= {f"{name}.self_attn.q_proj.weight": (48, 48), f"{name}.self_attn.k_proj.weight": (16, 48)}
        shapes |= {f"{name}.self_attn.v_proj.weight": (16, 48), f"{name}.self_attn.o_proj.weight": (48, 48)}
        shapes |= {f"{name}.mlp.gate_proj.weight": (64, 48), f"{name}.mlp.up_proj.weight": (64, 48)}
        shapes |= {f"{name}.mlp.down_proj.weight": (48, 64)}
    generator = torch.Generator().manual_seed(0)
    save_file({name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}, folder / "model.safetensors")
    tokenizer = Tokenizer(models.BPE({byte: place for place, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    write_model(Path("brook-model"))
