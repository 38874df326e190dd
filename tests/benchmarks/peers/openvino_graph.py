"""A model of the comparison as OpenVINO's own graph, with weights of 8 or 4 bits as its tools write them:
`python -m tests.benchmarks.peers.openvino_graph SHAPE FOLDER/openvino-int8|int4`.

int8 has one scale an output; int4 has one for 128 inputs, and 8 bits in the embedding and the head. The graph has the nodes that
OpenVINO fuses (RMS norm, rotary embedding) and turns into paged attention. Legend: B batch, T tokens, H heads, D head size.
"""

import sys
from pathlib import Path
from typing import Any

import numpy
import openvino
import torch
from openvino import opset13 as op
from torch import Tensor

from tests.benchmarks.peers.checkpoint import read_checkpoint
from tests.benchmarks.peers.shapes import HEAD_DIM, NORM_EPS, ROPE_THETA, SHAPES, Shape

GROUP_LEN = 128
LEAST = -65504.0


class GraphBuilder:
    """Builds the model of one checkpoint; `bits` are those of the layers' linears."""

    def __init__(self, shape: Shape, tensors: dict[str, Tensor], *, bits: int) -> None:
        self.shape = shape
        self.tensors = tensors
        self.bits = bits
        self.sinks: list[Any] = []
        self.ids = op.parameter([-1, -1], openvino.Type.i64, name="input_ids")
        self.mask = op.parameter([-1, -1], openvino.Type.i64, name="attention_mask")
        self.positions = op.parameter([-1, -1], openvino.Type.i64, name="position_ids")
        self.beams = op.parameter([-1], openvino.Type.i32, name="beam_idx")

    def build(self) -> openvino.Model:
        """The whole model: logits of all tokens."""
        table = "model.embed_tokens.weight"
        x = op.gather(self._weight(table, bits=8), op.convert(self.ids, "i32"), _ints(0))
        cos, sin = self._angles()
        masked = op.multiply(op.convert(op.subtract(_ints(1), self.mask), "f32"), _floats(LEAST))
        masked = op.unsqueeze(masked, _ints([1, 2]))
        for layer in range(self.shape.num_layers):
            prefix = f"model.layers.{layer}."
            attended = self._attention(layer, self._norm(x, f"{prefix}input_layernorm"), angles=(cos, sin), mask=masked)
            x = op.add(x, attended)
            x = op.add(x, self._mlp(f"{prefix}mlp.", self._norm(x, f"{prefix}post_attention_layernorm")))
        head = self._weight(table if self.shape.is_tied else "lm_head.weight", bits=8)
        logits = op.matmul(self._norm(x, "model.norm"), head, False, True)
        inputs = [self.ids, self.mask, self.positions, self.beams]
        for node in inputs:
            node.output(0).set_names({node.get_friendly_name()})
        result = op.result(logits)
        result.output(0).set_names({"logits"})
        return openvino.Model([result], self.sinks, inputs, "decoder")

    def _weight(self, name: str, *, bits: int | None = None) -> Any:
        """[O, I] float32, from codes."""
        values = self.tensors[name].float()
        if (bits or self.bits) == 8:
            scales = values.abs().amax(1, keepdim=True) / 127
            codes = op.constant((values / scales).round().to(torch.int8).numpy())
            whole = op.multiply(op.convert(codes, "f16"), op.constant(scales.half().numpy()))
            return op.convert(whole, "f32")
        groups = values.view(len(values), -1, GROUP_LEN)
        scales = groups.abs().amax(2, keepdim=True) / 7
        codes = ((groups / scales).round().to(torch.int8) & 15).to(torch.uint8).flatten()
        packed = (codes[::2] | (codes[1::2] << 4)).numpy()
        tensor = openvino.Tensor(packed, list(groups.shape), openvino.Type.i4)
        whole = op.multiply(op.convert(op.constant(tensor, shared_memory=False), "f16"), op.constant(scales.half().numpy()))
        return op.convert(op.reshape(whole, _ints(list(values.shape)), False), "f32")

    def _linear(self, x: Any, name: str) -> Any:
        out = op.matmul(x, self._weight(f"{name}.weight"), False, True)
        bias = self.tensors.get(f"{name}.bias")
        return out if bias is None else op.add(out, op.constant(bias.float().view(1, 1, -1).numpy()))

    def _norm(self, x: Any, name: str) -> Any:
        mean = op.reduce_mean(op.power(x, _floats([[[2.0]]])), _ints([-1]), True)
        scale = op.divide(_floats([[[1.0]]]), op.sqrt(op.add(mean, _floats([[[NORM_EPS]]]))))
        weight = self.tensors[f"{name}.weight"].float().view(1, 1, -1).numpy()
        return op.multiply(op.multiply(x, scale), op.constant(weight))

    def _mlp(self, prefix: str, x: Any) -> Any:
        gate = op.swish(self._linear(x, f"{prefix}gate_proj"))
        return self._linear(op.multiply(gate, self._linear(x, f"{prefix}up_proj")), f"{prefix}down_proj")

    def _angles(self) -> tuple[Any, Any]:
        """Cosines and sines [B, 1, T, D]."""
        inverse = (ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)).view(1, -1, 1).numpy().astype(numpy.float32)
        batch = op.gather(op.shape_of(self.ids, "i64"), _ints([0]), _ints(0))
        spread = op.broadcast(op.constant(inverse), op.concat([batch, _ints([HEAD_DIM // 2, 1])], 0), "BIDIRECTIONAL")
        positions = op.convert(op.unsqueeze(self.positions, _ints(1)), "f32")
        half = op.transpose(op.matmul(spread, positions, False, False), _ints([0, 2, 1]))
        angles = op.concat([half, half], -1)
        return op.unsqueeze(op.cos(angles), _ints(1)), op.unsqueeze(op.sin(angles), _ints(1))

    def _heads(self, x: Any, num_heads: int) -> Any:
        """[B, H, T, D]"""
        return op.transpose(op.reshape(x, _ints([0, 0, num_heads, HEAD_DIM]), True), _ints([0, 2, 1, 3]))

    def _rotate(self, x: Any, angles: tuple[Any, Any]) -> Any:
        half, end, last = _ints([HEAD_DIM // 2]), _ints([2**63 - 1]), _ints([3])
        second, first = op.slice(x, half, end, _ints([1]), last), op.slice(x, _ints([0]), half, _ints([1]), last)
        turned = op.concat([op.multiply(second, _floats([[[[-1.0]]]])), first], -1)
        return op.add(op.multiply(x, angles[0]), op.multiply(turned, angles[1]))

    def _cached(self, name: str, new: Any) -> Any:
        """What the cache holds and `new` [B, H, T, D], for all query heads of a group."""
        shape = self.shape
        batch = op.gather(op.shape_of(self.ids, "i64"), _ints([0]), _ints(0))
        empty = op.broadcast(_floats(0.0), op.concat([batch, _ints([shape.num_kv_heads, 0, HEAD_DIM])], 0))
        read = op.read_value(empty, name, openvino.Type.f32, openvino.PartialShape([-1, shape.num_kv_heads, -1, HEAD_DIM]))
        whole = op.concat([op.gather(read, self.beams, _ints(0)), new], -2)
        self.sinks.append(op.assign(whole, name))
        group = shape.num_heads // shape.num_kv_heads
        sizes = op.gather(op.shape_of(whole, "i64"), _ints([0, 1]), _ints(0)), op.gather(op.shape_of(whole, "i64"), _ints([2, 3]), _ints(0))
        spread = op.broadcast(op.unsqueeze(whole, _ints(2)), op.concat([sizes[0], _ints([group]), sizes[1]], 0), "BIDIRECTIONAL")
        return op.reshape(spread, _ints([0, shape.num_heads, -1, HEAD_DIM]), True)

    def _attention(self, layer: int, x: Any, *, angles: tuple[Any, Any], mask: Any) -> Any:
        prefix, shape = f"model.layers.{layer}.self_attn.", self.shape
        q = self._rotate(self._heads(self._linear(x, f"{prefix}q_proj"), shape.num_heads), angles)
        k = self._rotate(self._heads(self._linear(x, f"{prefix}k_proj"), shape.num_kv_heads), angles)
        v = self._heads(self._linear(x, f"{prefix}v_proj"), shape.num_kv_heads)
        k, v = (self._cached(f"past_key_values.{layer}.{name}", new) for name, new in (("key", k), ("value", v)))
        attended = op.scaled_dot_product_attention(q, k, v, mask)
        joined = op.reshape(op.transpose(attended, _ints([0, 2, 1, 3])), _ints([0, 0, shape.num_heads * HEAD_DIM]), True)
        return self._linear(joined, f"{prefix}o_proj")


def write_graph(shape: Shape, tensors: dict[str, Tensor], path: Path, *, bits: int) -> None:
    """openvino_model.xml and its weights."""
    openvino.save_model(GraphBuilder(shape, tensors, bits=bits).build(), path, compress_to_fp16=False)


def _ints(values: Any) -> Any:
    return op.constant(numpy.array(values, dtype=numpy.int64))


def _floats(values: Any) -> Any:
    return op.constant(numpy.array(values, dtype=numpy.float32))


if __name__ == "__main__":
    into = Path(sys.argv[2])
    into.mkdir(exist_ok=True)
    write_graph(SHAPES[sys.argv[1]], read_checkpoint(into.parent), into / "openvino_model.xml", bits=8 if into.name.endswith("8") else 4)
