"""A stored int8 format, to prove that names, packing and parts belong to the format, and layers never notice."""

import pytest
import torch
from safetensors.torch import save_file

from actorllm.errors import TensorLeftOver
from actorllm.layers.linear import GateUpLinear, HeadSplit, QKVLinear, RowLinear
from actorllm.layers.shard import Shard
from actorllm.testing.toy_int8 import Int8Weight
from actorllm.weights.checkpoint import Checkpoint
from actorllm.weights.formats import PlainFormat, TensorReader
from actorllm.weights.linear_weight import DenseWeight, JoinedWeight, LinearWeight, join_weights
from actorllm.weights.random import RandomWeights

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(5))


class Int8Format(PlainFormat):
    """`name.weight` of codes beside `name.weight_scale`; a linear without a scale is stored plainly."""

    def linear(self, reader: TensorReader, name, *, shape, rows, cols) -> LinearWeight:
        if not reader.has(f"{name}.weight_scale"):
            return super().linear(reader, name, shape=shape, rows=rows, cols=cols)
        codes = reader.read(f"{name}.weight", shape, rows=rows, cols=cols, dtype=torch.int8)
        return Int8Weight(codes, reader.read(f"{name}.weight_scale", (shape[0], 1), rows=rows))


@pytest.fixture
def pair(tmp_path):
    """The same values stored as codes and as plain tensors; `plain_too` stays plain in both."""
    generator = torch.Generator().manual_seed(0)
    plain = {"mlp.up_proj.weight": torch.randn(6, 8, generator=generator)}
    coded = dict(plain)
    for name, rows in (("mlp.gate_proj", 6), ("attn.q_proj", 8), ("attn.k_proj", 4), ("attn.v_proj", 4), ("attn.o_proj", 5)):
        codes = torch.randint(-127, 128, (rows, 8), generator=generator, dtype=torch.int8)
        scale = torch.rand(rows, 1, generator=generator) / 127
        coded |= {f"{name}.weight": codes, f"{name}.weight_scale": scale}
        plain[f"{name}.weight"] = codes * scale
    for folder, tensors in (("plain", plain), ("coded", coded)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    with Checkpoint.open(tmp_path / "plain") as one, Checkpoint.open(tmp_path / "coded", storage=Int8Format()) as other:
        yield one, other


def outputs(new_layer, prefix, pair):
    results = []
    for source in pair:
        layer = new_layer()
        layer.load(source, prefix)
        results.append(layer(X[:, : layer.num_inputs] if not isinstance(layer, RowLinear) else X[:, slice(*layer.cols)]))
    return layer, results


@pytest.mark.parametrize("rank", [0, 1])
def test_siblings_of_one_format_are_fused_and_stay_int8(pair, rank):
    split = HeadSplit.of(4, 2, head_dim=2, shard=Shard(rank, 2))
    layer, (plain, coded) = outputs(lambda: QKVLinear(8, split), "attn.qkv_proj.", pair)
    torch.testing.assert_close(coded, plain)
    assert isinstance(layer.weight, Int8Weight) and layer.weight.codes_OI.dtype == torch.int8
    assert layer.weight.codes_OI.shape == (8, 8)


def test_siblings_of_different_formats_stay_apart(pair):
    layer, (plain, coded) = outputs(lambda: GateUpLinear(8, 6, shard=Shard()), "mlp.gate_up_proj.", pair)
    torch.testing.assert_close(coded, plain)
    assert isinstance(layer.weight, JoinedWeight)


def test_columns_of_codes(pair):
    _, (plain, coded) = outputs(lambda: RowLinear(8, 5, shard=Shard(), cols=(2, 6)), "attn.o_proj.", pair)
    torch.testing.assert_close(coded, plain)


def test_a_format_claims_its_own_names(pair):
    coded = pair[1]
    for name, rows in (("mlp.gate_proj", 6), ("attn.q_proj", 8), ("attn.k_proj", 4), ("attn.v_proj", 4)):
        coded.linear(name, (rows, 8))
    with pytest.raises(TensorLeftOver, match=r"3 tensors.*o_proj\.weight, attn\.o_proj\.weight_scale, mlp\.up_proj"):
        coded.finish({})


def test_one_weight_is_joined_to_itself():
    weight = DenseWeight(torch.ones(2, 3, dtype=torch.float64))
    assert join_weights([weight]) is weight


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_computes_the_same(num_rows, dtype):
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(50, 30, generator=generator).to(dtype)
    x_TI = torch.randn(num_rows, 30, generator=generator).to(dtype)
    packed = join_weights([DenseWeight(weight_OI[:20]), DenseWeight(weight_OI[20:])])
    assert packed.out_features == 50
    expected = x_TI.double() @ weight_OI.double().T
    torch.testing.assert_close(packed(x_TI), expected.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-4)


def test_random_weights_depend_on_name_and_seed_only():
    first, second, other = RandomWeights(1), RandomWeights(1), RandomWeights(2)
    second.tensor("before", (3, 3))
    whole = first.tensor("x.weight", (6, 4))
    assert torch.equal(whole, second.tensor("x.weight", (6, 4)))
    assert torch.equal(whole[2:4], first.tensor("x.weight", (6, 4), rows=(2, 4)))
    assert not torch.equal(whole, other.tensor("x.weight", (6, 4)))
    part = first.linear("x", (6, 4), rows=(0, 3), cols=(1, 3))
    torch.testing.assert_close(part(torch.eye(2)), whole[:3, 1:3].T)
