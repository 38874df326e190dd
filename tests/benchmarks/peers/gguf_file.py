"""A model of the comparison as a GGUF file: `python -m tests.benchmarks.peers.gguf_file SHAPE FOLDER/FORM.gguf`.

Q4_0 keeps the embedding and the head in Q8_0.
"""

import sys
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from tests.benchmarks.peers.checkpoint import read_checkpoint
from tests.benchmarks.peers.shapes import HEAD_DIM, NORM_EPS, ROPE_THETA, SHAPES, Shape

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write(shape: Shape, tensors: dict[str, Tensor], path: Path, *, kind: Kind) -> None:
    """The GGUF file."""
    writer = gguf.GGUFWriter(path, "qwen2" if shape.is_qwen else "llama")
    writer.add_block_count(shape.num_layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("none")
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        if not shape.is_qwen and name.endswith(("q_proj.weight", "k_proj.weight")):  # its Llamas rotate neighbours
            values = values.reshape(-1, 2, HEAD_DIM // 2, shape.hidden).swapaxes(1, 2).reshape(values.shape)
        of_name = Kind.F32 if values.ndim == 1 else Kind.Q8_0 if kind == Kind.Q4_0 and "layers" not in name else kind
        writer.add_tensor(_name(name), gguf.quants.quantize(values, of_name), raw_dtype=of_name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    stem, _, ending = name.rpartition(".")
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if stem in top:
        return f"{top[stem]}.{ending}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[part]}.{ending}"


if __name__ == "__main__":
    whole = Path(sys.argv[2])
    unfinished = whole.with_suffix(".part")
    write(SHAPES[sys.argv[1]], read_checkpoint(whole.parent), unfinished, kind=Kind[whole.stem])
    unfinished.replace(whole)
