"""Compact weights in a model: what is kept, what it takes, and that the model computes what its codes say."""

import pytest
import torch

from actorllm.layers.embedding import Embedding, Head
from actorllm.layers.linear import GateUpLinear
from actorllm.layers.shard import Shard
from actorllm.testing.tiny import TinyCache, logits_of, on_thread_ranks
from actorllm.weights.compact import CompactFormat, CompactWeight, PackedWeight
from actorllm.weights.formats import PlainFormat
from actorllm.weights.linear_weight import DenseWeight, join_weights
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module
from actorllm_kernels.linear import Bf16, Fp8, Int4, Int8, WeightOnly, reference
from actorllm_llama.llama import LlamaForCausalLM

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97, "hidden_size": 40, "intermediate_size": 50,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
FORMS = [pytest.param(form, id=form.name) for form in (Bf16(), Int8(), Int4())]
FORMS += [pytest.param(Fp8(), id="fp8")]
FORMS += [pytest.param(WeightOnly(bits), id=f"int{bits}, weights only") for bits in (8, 4)]
IDS = list(range(20))


class DenseAgain(CompactFormat):
    """The same rounded values as plain float32 weights."""

    def _compact(self, weight, form):
        return DenseWeight(super()._compact(weight, form).dense())


def logits(storage, shard: Shard, **changes) -> torch.Tensor:
    model = LlamaForCausalLM(LlamaForCausalLM.config_class.from_hf(CONFIG | changes), shard)
    load_module(model, RandomWeights(3, std=0.2, storage=storage))
    return logits_of(model, TinyCache(model.cache_groups, num_rows=1, context=32), [(0, IDS)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_model_computes_what_its_codes_say(form, is_tied, num_ranks):
    expected = logits(DenseAgain(PlainFormat(), form), Shard(), tie_word_embeddings=is_tied)
    storage = CompactFormat(PlainFormat(), form)
    for got in on_thread_ranks(num_ranks, lambda shard: logits(storage, shard, tie_word_embeddings=is_tied)):
        # Activations are rounded too; and ranks cut rows into other groups, so that weights of 4 bits round to other values.
        distance = (got - expected).norm() / expected.norm()
        assert distance < (1e-5 if form.name == "bfloat16" else 0.4 if form.name == "int4" and num_ranks > 1 else 0.2 if form.name == "fp8" else 0.05)


@pytest.mark.parametrize("form", FORMS)
def test_siblings_are_joined_before_they_are_packed(form):
    source = RandomWeights(1, storage=CompactFormat(PlainFormat(), form))
    layer = GateUpLinear(24, 20, shard=Shard())
    layer.load(source, "mlp.gate_up_proj.")
    assert isinstance(layer.weight, PackedWeight) and layer.weight.out_features == 40
    apart = [source.linear(name, (20, 24)) for name in ("mlp.gate_proj", "mlp.up_proj")]
    x = torch.randn(3, 24)
    torch.testing.assert_close(layer(x), torch.cat([part(x) for part in apart], dim=1))


def test_different_forms_stay_apart():
    values = torch.randn(4, 32)
    parts = [CompactWeight(Bf16(), Bf16().codes(values)), DenseWeight(values)]
    x = torch.randn(2, 32)
    torch.testing.assert_close(join_weights(parts)(x), torch.cat([part(x) for part in parts], dim=1))


@pytest.mark.parametrize("form", FORMS)
def test_a_tied_head_shares_the_packed_table(form):
    embedding = Embedding(50, 32)
    head = Head(32, 50, shard=Shard(), tied=embedding)
    source = RandomWeights(1, storage=CompactFormat(PlainFormat(), form))
    embedding.load(source, "embed.")
    rows = embedding(torch.tensor([49, 0, 3]))
    head.load(source, "head.")
    assert isinstance(embedding.table, PackedWeight) and head.weight is None
    assert torch.equal(embedding(torch.tensor([49, 0, 3])), rows)


@pytest.mark.parametrize("form", FORMS)
def test_memory_is_told_beforehand(form):
    storage = CompactFormat(PlainFormat(), form)
    shape = (64, 256)
    packed = CompactWeight(form, form.codes(torch.randn(shape))).packed()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in packed.tensors)
    assert storage.num_values("linear.weight", shape) * 4 == pytest.approx(num_bytes, rel=0.05)
    assert storage.num_values("norm.weight", (64,)) == 64


def test_embeddings_and_heads_may_be_kept_finer():
    source = RandomWeights(1, storage=CompactFormat(PlainFormat(), Int4(), table_form=Int8()))
    forms = [weight.form.name for weight in (source.linear("proj", (8, 32)), source.table("head", (8, 32), rows=(2, 5)))]
    assert forms == ["int4", "int8"] and source.table("head", (8, 32), rows=(2, 5)).out_features == 3


def test_codes_of_many_outputs_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large matrices become codes block by block."""
    w_OI = torch.randn(37, 64)
    whole = [form.codes(w_OI) for form in (Int8(), Int4(32))]
    monkeypatch.setattr(reference, "BLOCK_VALUES", 5 * 64)
    for form, codes in zip((Int8(), Int4(32)), whole, strict=True):
        for block, expected in zip(form.codes(w_OI), codes, strict=True):
            assert torch.equal(block, expected)
