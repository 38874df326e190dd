"""llama.cpp by llama-cpp-python's plain bindings: the same weights as GGUF, many sequences in one context, greedy.

Q4_0 keeps the embedding and the head in Q8_0. Keys and values are float16, as llama.cpp chooses.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from tests.benchmarks.peers.shapes import HEAD_DIM, NORM_EPS, ROPE_THETA, SHAPES, Shape, read_checkpoint
from tests.benchmarks.peers.side import Spec
from tests.benchmarks.peers.worker import Running

BATCH_TOKENS = 2048
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


@asynccontextmanager
async def started(spec: Spec) -> AsyncIterator[Running]:
    path = Path(spec.folder) / f"{spec.form}.gguf"
    if not path.exists():
        made = path.with_suffix(".part")
        _write(SHAPES[spec.shape], read_checkpoint(Path(spec.folder)), made, kind=Kind[spec.form])
        made.replace(path)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_seq_max = spec.num_slots, BATCH_TOKENS, spec.num_requests
    settings.n_threads = settings.n_threads_batch = spec.num_threads
    settings.kv_unified = True
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    async def run(prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        return _run(context, batch, prompts, num_tokens=num_tokens, vocab_size=SHAPES[spec.shape].vocab_size)

    yield Running(run, f"llama-cpp-python {llama_cpp.__version__}")


def _run(context: Any, batch: Any, prompts: list[list[int]], *, num_tokens: int, vocab_size: int) -> list[list[float]]:
    times = [[time.perf_counter()] for _ in prompts]
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    entries = [
        (token, place, row, place == len(prompt) - 1) for row, prompt in enumerate(prompts) for place, token in enumerate(prompt)
    ]
    for _ in range(num_tokens):
        following = []
        for begin in range(0, len(entries), BATCH_TOKENS):
            for (_, place, row), logits in _decode(context, batch, entries[begin : begin + BATCH_TOKENS]):
                best = int(numpy.ctypeslib.as_array(logits, (vocab_size,)).argmax())
                times[row].append(time.perf_counter())
                following.append((best, place + 1, row, True))
        entries = following
    return times


def _decode(context: Any, batch: Any, entries: list[tuple[int, int, int, bool]]):
    """Compute (token, position, sequence, whether it is asked for its logits); gives the last ones with their logits."""
    batch.n_tokens = len(entries)
    for index, (token, place, row, is_last) in enumerate(entries):
        batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, place, 1
        batch.seq_id[index][0], batch.logits[index] = row, is_last
    if code := llama_cpp.llama_decode(context, batch):
        raise RuntimeError(f"llama_decode gave {code}")
    for index, (*entry, is_last) in enumerate(entries):
        if is_last:
            yield entry, llama_cpp.llama_get_logits_ith(context, index)


def _write(shape: Shape, tensors: dict[str, Tensor], path: Path, *, kind: Kind) -> None:
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
