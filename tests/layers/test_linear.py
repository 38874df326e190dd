"""Sharded and fused layers: every rank reads its own part, and together they compute the whole."""

import pytest
import torch
from torch.nn import functional as F

from actorllm.errors import UnsupportedConfig
from actorllm.layers.activation import activation, gated
from actorllm.layers.batch import GivenEmbeddings
from actorllm.layers.embedding import Embedding, Head, PositionEmbedding
from actorllm.layers.linear import ColumnLinear, GateUpLinear, HeadSplit, PackedQKVLinear, QKVLinear, RowLinear
from actorllm.layers.mlp import MLP, GatedMLP
from actorllm.layers.norm import LayerNorm, RMSNorm
from actorllm.layers.shard import Shard
from actorllm.testing.tiny import on_thread_ranks
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module

WEIGHTS = RandomWeights(3, std=0.5)
X = torch.randn(4, 12, generator=torch.Generator().manual_seed(5))


class Reads:
    """Notes which part of which tensor is pulled."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple] = {}
        self.num_reads = 0

    def has(self, name):
        return True

    def tensor(self, name, shape, *, rows=None):
        self.parts[name] = (shape, rows, None)
        return WEIGHTS.tensor(name, shape, rows=rows)

    def linear(self, name, shape, *, rows=None, cols=None):
        self.parts[name] = (shape, rows, cols)
        self.num_reads += 1
        return WEIGHTS.linear(name, shape, rows=rows, cols=cols)


def whole(name: str, num_outputs: int, num_inputs: int, *, bias: bool = False) -> torch.Tensor:
    """The linear `name` of the checkpoint applied to X (or to as many inputs)."""
    bias_O = WEIGHTS.tensor(f"{name}.bias", (num_outputs,)) if bias else None
    return F.linear(X[:, :num_inputs], WEIGHTS.tensor(f"{name}.weight", (num_outputs, num_inputs)), bias_O)


def loaded(layer, prefix: str):
    layer.load(WEIGHTS, prefix)
    return layer


def test_a_column_rank_reads_its_rows_only():
    reads = Reads()
    layer = ColumnLinear(12, 10, name="fc", shard=Shard(1, 3), bias=True)
    layer.load(reads, "block.fc.")
    assert reads.parts == {"block.fc": ((10, 12), (4, 7), None), "block.fc.bias": ((10,), (4, 7), None)}
    torch.testing.assert_close(layer(X), whole("block.fc", 10, 12, bias=True)[:, 4:7])


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_row_ranks_sum_up_and_add_the_bias_once(num_ranks):
    def work(shard):
        layer = loaded(RowLinear(12, 5, shard=shard, bias=True), "block.out.")
        return layer(X[:, slice(*shard.span(12))])

    for got in on_thread_ranks(num_ranks, work):
        torch.testing.assert_close(got, whole("block.out", 5, 12, bias=True))


def test_a_row_rank_reads_its_columns_only():
    reads = Reads()
    RowLinear(12, 5, shard=Shard(1, 2)).load(reads, "out.")
    assert reads.parts == {"out": ((5, 12), None, (6, 12))}


def test_a_fused_layer_claims_its_siblings():
    layer = loaded(GateUpLinear(12, 6, shard=Shard(), bias=True), "mlp.gate_up_proj.")
    gate, up = layer(X).chunk(2, dim=-1)
    torch.testing.assert_close(gate, whole("mlp.gate_proj", 6, 12, bias=True))
    torch.testing.assert_close(up, whole("mlp.up_proj", 6, 12, bias=True))


@pytest.mark.parametrize("bias", [False, True])
def test_a_fused_layer_gives_the_product_of_its_siblings(bias):
    layer = loaded(GateUpLinear(12, 6, shard=Shard(), bias=bias), "mlp.gate_up_proj.")
    gate, up = (whole(f"mlp.{name}_proj", 6, 12, bias=bias) for name in ("gate", "up"))
    torch.testing.assert_close(layer.gated(X, gated("silu")), F.silu(gate) * up)


@pytest.mark.parametrize(("num_kv_heads", "num_ranks"), [(2, 1), (2, 2), (1, 2), (3, 2), (2, 4)])
def test_qkv_gives_each_rank_its_heads(num_kv_heads, num_ranks):
    num_heads, dim = num_kv_heads * 2 if num_kv_heads > 1 else 4, 4
    for rank in range(num_ranks):
        split = HeadSplit.of(num_heads, num_kv_heads, head_dim=dim, shard=Shard(rank, num_ranks))
        q, k, v = loaded(QKVLinear(12, split, bias=True), "attn.qkv_proj.").qkv(X)
        expected_q = whole("attn.q_proj", num_heads * dim, 12, bias=True).view(4, num_heads, dim)
        torch.testing.assert_close(q, expected_q[:, slice(*split.q_heads)])
        for got, name in ((k, "attn.k_proj"), (v, "attn.v_proj")):
            expected = whole(name, num_kv_heads * dim, 12, bias=True).view(4, num_kv_heads, dim)
            torch.testing.assert_close(got, expected[:, slice(*split.kv_heads)])


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "num_ranks"), [(4, 4, 1), (6, 2, 1), (6, 2, 2), (4, 4, 3), (4, 1, 2), (5, 1, 2), (8, 2, 4)]
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_one_tensor_gives_each_rank_its_queries_and_keys(num_heads, num_kv_heads, num_ranks, is_packed):
    dim, group = 2, num_heads // num_kv_heads
    whole_qkv = whole("attn.qkv", (num_heads + 2 * num_kv_heads) * dim, 12, bias=True)
    if is_packed:  # for each group: queries, key, value
        groups = whole_qkv.view(4, num_kv_heads, group + 2, dim)
        expected = groups[:, :, :group].reshape(4, -1, dim), groups[:, :, group], groups[:, :, group + 1]
    else:  # all queries, all keys, all values
        expected = whole_qkv.view(4, -1, dim).split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    for rank in range(num_ranks):
        split = HeadSplit.of(num_heads, num_kv_heads, head_dim=dim, shard=Shard(rank, num_ranks))
        layer = PackedQKVLinear(12, split, name="qkv", bias=True) if is_packed else QKVLinear(12, split, bias=True, names="qkv")
        q, k, v = loaded(layer, "attn.qkv.").qkv(X)
        torch.testing.assert_close(q, expected[0][:, slice(*split.q_heads)])
        torch.testing.assert_close(k, expected[1][:, slice(*split.kv_heads)])
        torch.testing.assert_close(v, expected[2][:, slice(*split.kv_heads)])


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_one_rank_reads_one_tensor_in_one_piece(num_heads, num_kv_heads):
    split = HeadSplit.of(num_heads, num_kv_heads, head_dim=2, shard=Shard())
    num_outputs = (num_heads + 2 * num_kv_heads) * 2
    for layer in (QKVLinear(12, split, names="qkv"), PackedQKVLinear(12, split, name="qkv"), GateUpLinear(12, 5, shard=Shard(), names="qkv")):
        reads = Reads()
        layer.load(reads, "attn.qkv.")
        rows = 10 if isinstance(layer, GateUpLinear) else num_outputs
        assert reads.parts == {"attn.qkv": ((rows, 12), (0, rows), None)} and reads.num_reads == 1


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_a_gate_and_its_sibling_may_be_one_tensor(num_ranks):
    gate_and_up = whole("mlp.gate_up_proj", 10, 12, bias=True)
    for rank in range(num_ranks):
        shard = Shard(rank, num_ranks)
        layer = GateUpLinear(12, 5, shard=shard, bias=True, names="gate_up_proj")
        gate, up = loaded(layer, "mlp.gate_up_proj.")(X).chunk(2, dim=-1)
        torch.testing.assert_close(gate, gate_and_up[:, :5][:, slice(*shard.span(5))])
        torch.testing.assert_close(up, gate_and_up[:, 5:][:, slice(*shard.span(5))])


def test_given_embeddings_stand_in_place_of_ids():
    embedding = loaded(Embedding(11, 12), "embed.")
    ids = torch.tensor([5, 6, 7, 8])
    given = [GivenEmbeddings(1, torch.full((2, 12), 0.25))]
    got, plain = embedding(ids, given), embedding(ids)
    assert torch.equal(got[[0, 3]], plain[[0, 3]])
    assert (got[1:3] == 0.25).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_scaled_in_the_precision_of_their_weights(dtype):
    embedding = Embedding(11, 12, scale=3072**0.5)
    embedding.load(RandomWeights(3, std=0.5, dtype=dtype), "embed.")
    ids, given = torch.tensor([5, 6]), torch.full((1, 12), 0.25)
    got = embedding(ids, [GivenEmbeddings(1, given)])
    scale = torch.tensor(55.5 if dtype == torch.bfloat16 else 3072**0.5)
    assert embedding.table is not None and got.dtype == dtype == embedding.dtype
    assert torch.equal(got[0], (embedding.table.rows(ids)[0].float() * scale).to(dtype))
    assert torch.equal(got[1:], given.to(dtype))


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_gated_mlp(num_ranks):
    def work(shard):
        mlp = GatedMLP(12, 10, activation_name="silu", shard=shard)
        load_module(mlp, WEIGHTS, "mlp")
        return mlp(X)

    middle = F.silu(whole("mlp.gate_proj", 10, 12)) * whole("mlp.up_proj", 10, 12)
    expected = F.linear(middle, WEIGHTS.tensor("mlp.down_proj.weight", (12, 10)))
    for got in on_thread_ranks(num_ranks, work):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_plain_mlp_under_the_names_of_the_checkpoint(num_ranks, bias):
    def work(shard):
        mlp = MLP(12, 10, activation_name="relu", shard=shard, names=("c_fc", "c_proj"), bias=bias)
        load_module(mlp, WEIGHTS, "h.0.mlp")
        return mlp(X)

    out_bias = WEIGHTS.tensor("h.0.mlp.c_proj.bias", (12,)) if bias else None
    middle = F.relu(whole("h.0.mlp.c_fc", 10, 12, bias=bias))
    expected = F.linear(middle, WEIGHTS.tensor("h.0.mlp.c_proj.weight", (12, 10)), out_bias)
    for got in on_thread_ranks(num_ranks, work):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("offset", [0, 2])
def test_positions_begin_after_the_offset(offset):
    table = WEIGHTS.tensor("embed_positions.weight", (9 + offset, 12))
    got = loaded(PositionEmbedding(9, 12, offset=offset), "embed_positions.")(torch.tensor([0, 8, 3]))
    assert torch.equal(got, table[torch.tensor([0, 8, 3]) + offset])


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_head_gathers_the_whole_vocabulary(num_ranks, is_tied):
    def work(shard):
        embedding = loaded(Embedding(11, 12), "embed.")
        head = Head(12, 11, shard=shard, tied=embedding if is_tied else None)
        head.load(WEIGHTS, "lm_head.")
        return head(embedding(torch.tensor([3, 3, 0, 10])))

    table = WEIGHTS.tensor("embed.weight", (11, 12))
    weight = table if is_tied else WEIGHTS.tensor("lm_head.weight", (11, 12))
    for got in on_thread_ranks(num_ranks, work):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, table[[3, 3, 0, 10]] @ weight.T)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_head_caps_its_logits(num_ranks):
    def work(shard):
        plain, capped = (loaded(Head(12, 11, shard=shard, soft_cap=cap), "lm_head.") for cap in (None, 1.5))
        return plain(X), capped(X)

    for plain, capped in on_thread_ranks(num_ranks, work):
        assert plain.abs().max() > 1.5
        torch.testing.assert_close(capped, 1.5 * torch.tanh(plain / 1.5))


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_a_normalised_head_gives_cosines_times_the_hidden_length(num_ranks):
    weight = WEIGHTS.tensor("lm_head.weight", (11, 12))
    expected = X @ (weight / weight.norm(dim=1, keepdim=True)).T
    for got in on_thread_ranks(num_ranks, lambda shard: loaded(Head(12, 11, shard=shard, is_normalised=True), "lm_head.")(X)):
        torch.testing.assert_close(got, expected)


def test_a_tied_head_pulls_nothing():
    reads = Reads()
    Head(12, 11, shard=Shard(), tied=loaded(Embedding(11, 12), "embed.")).load(reads, "lm_head.")
    assert not reads.parts


def test_unload_gives_the_weights_back():
    layers = [
        (ColumnLinear(12, 4, name="fc", shard=Shard(), bias=True), "fc."),
        (RowLinear(12, 4, shard=Shard(), bias=True), "out."),
        (RMSNorm(12, eps=1e-5), "norm."),
        (LayerNorm(12, eps=1e-5), "norm."),
        (Head(12, 4, shard=Shard()), "head."),
    ]
    for layer, prefix in layers:
        before = loaded(layer, prefix)(X)
        layer.unload()
        assert not list(layer.parameters())
        with pytest.raises(AssertionError, match="no weights"):
            layer(X)
        assert torch.equal(loaded(layer, prefix)(X), before)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("silu", F.silu),
        ("relu", F.relu),
        ("gelu", F.gelu),
        ("gelu_new", lambda x: F.gelu(x, approximate="tanh")),
        ("gelu_pytorch_tanh", lambda x: F.gelu(x, approximate="tanh")),
    ],
)
def test_activations_by_name(name, function):
    assert torch.equal(activation(name)(X), function(X))


def test_an_unknown_activation_names_the_known():
    with pytest.raises(UnsupportedConfig, match=r"'mish'.*silu"):
        activation("mish")
