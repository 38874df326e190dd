"""Linear layers that know their share of a model split over ranks, and claim their weights by the checkpoint's names.

A column-parallel layer holds some of the outputs, a row-parallel one some of the inputs and sums over ranks. A fused
layer claims siblings: `qkv_proj` pulls `q_proj`, `k_proj` and `v_proj`; where the checkpoint has them as one tensor, it
claims several parts of that. So a checkpoint's layout is a list of claims. The weight's format is the source's business;
that a linear is stored as [in, out] is declared by the model (`CausalLM.transposed_linears`).
After Megatron-LM (arXiv 1909.08053).

Legend: T tokens, I inputs, O outputs (of this rank), H query heads, K key/value heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from actorllm.errors import UnsupportedConfig
from actorllm.layers.shard import Shard
from actorllm.weights.linear_weight import LinearWeight, join_weights, joined
from actorllm.weights.source import WeightSource
from actorllm_kernels.gated import GatedProduct


@dataclass(frozen=True)
class Claim:
    """Rows of one linear of the checkpoint: its name beside the layer's own, its whole outputs, and the rows of this rank."""

    name: str
    num_outputs: int
    rows: tuple[int, int]


def sibling(prefix: str, name: str) -> str:
    """The qualified name of what lies beside a module whose own qualified name, with a final dot, is `prefix`."""
    parent = prefix.removesuffix(".").rpartition(".")[0]
    return f"{parent}.{name}" if parent else name


def merged(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The same rows in the same order, with neighbours that lie one after another in a tensor as one claim."""
    whole: list[Claim] = []
    for claim in claims:
        if whole and whole[-1].name == claim.name and whole[-1].rows[1] == claim.rows[0]:
            claim = Claim(claim.name, claim.num_outputs, (whole.pop().rows[0], claim.rows[1]))
        whole.append(claim)
    return tuple(whole)


def claims_of(names: Sequence[str] | str, parts: Sequence[tuple[int, tuple[int, int]]]) -> list[Claim]:
    """Claims on `(whole outputs, rows)` of linears that lie apart under `names`, or under one name one after another."""
    if not isinstance(names, str):
        return [Claim(name, num_outputs, rows) for name, (num_outputs, rows) in zip(names, parts, strict=True)]
    claims, start, total = [], 0, sum(num_outputs for num_outputs, _ in parts)
    for num_outputs, rows in parts:
        claims.append(Claim(names, total, (start + rows[0], start + rows[1])))
        start += num_outputs
    return claims


class FusedLinear(nn.Module):
    """x [T, I] -> [T, O]: the claims' outputs of this rank, one after another."""

    def __init__(self, num_inputs: int, claims: Sequence[Claim], *, bias: bool = False) -> None:
        super().__init__()
        self.num_inputs = num_inputs
        self.claims = merged(claims)
        self.has_bias = bias
        self.weight: LinearWeight | None = None
        self.bias: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        """Pull every claim; `prefix` is this layer's own qualified name with a final dot."""
        names = [sibling(prefix, claim.name) for claim in self.claims]
        self.weight = join_weights(
            [
                source.linear(name, (claim.num_outputs, self.num_inputs), rows=claim.rows)
                for name, claim in zip(names, self.claims, strict=True)
            ]
        )
        if self.has_bias:
            parts = [
                source.tensor(f"{name}.bias", (claim.num_outputs,), rows=claim.rows)
                for name, claim in zip(names, self.claims, strict=True)
            ]
            self.bias = joined(parts)

    def unload(self) -> None:
        self.weight = self.bias = None

    def forward(self, x_TI: Tensor) -> Tensor:
        assert self.weight is not None, "the layer has no weights yet"
        out_TO = self.weight(x_TI)
        return out_TO if self.bias is None else out_TO + self.bias


class ColumnLinear(FusedLinear):
    """A linear whose outputs are split over ranks, at multiples of `unit`. `name` is its own name in the checkpoint."""

    def __init__(self, num_inputs: int, num_outputs: int, *, name: str, shard: Shard, bias: bool = False, unit: int = 1) -> None:
        super().__init__(num_inputs, [Claim(name, num_outputs, shard.span(num_outputs, unit=unit))], bias=bias)


class GateUpLinear(FusedLinear):
    """The two input projections of a gated MLP as one, and their product.

    `names` are the checkpoint's: two linears, or one that holds the gate's rows and then the other's (Phi-3).
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        shard: Shard,
        bias: bool = False,
        names: tuple[str, str] | str = ("gate_proj", "up_proj"),
    ) -> None:
        rows = shard.span(num_outputs)
        super().__init__(num_inputs, claims_of(names, [(num_outputs, rows)] * 2), bias=bias)

    def gated(self, x_TI: Tensor, product: GatedProduct) -> Tensor:
        """The product of this rank's part of both projections, [T, O]."""
        if self.bias is not None:
            return product.of_halves(self(x_TI))
        assert self.weight is not None, "the layer has no weights yet"
        return self.weight.gated(x_TI, product)


class RowLinear(nn.Module):
    """A linear whose inputs are split over ranks: `cols` are this rank's; the sum over ranks is whole.

    `name` is its own name in the checkpoint, if that is not this module's.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        shard: Shard,
        cols: tuple[int, int] | None = None,
        bias: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.num_inputs = num_inputs
        self.num_outputs = num_outputs
        self.cols = cols or shard.span(num_inputs)
        self.has_bias = bias
        self.shard = shard
        self.weight: LinearWeight | None = None
        self.bias: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        name = prefix.removesuffix(".") if self.name is None else sibling(prefix, self.name)
        self.weight = source.linear(name, (self.num_outputs, self.num_inputs), cols=self.cols).packed()
        if self.has_bias:
            self.bias = source.tensor(f"{name}.bias", (self.num_outputs,))

    def unload(self) -> None:
        self.weight = self.bias = None

    def forward(self, x_TI: Tensor) -> Tensor:
        assert self.weight is not None, "the layer has no weights yet"
        out_TO = self.shard.collectives.all_reduce(self.weight(x_TI))
        return out_TO if self.bias is None else out_TO + self.bias


@dataclass(frozen=True)
class HeadSplit:
    """Which attention heads a rank holds: whole groups of query heads with their key/value head.

    With more ranks than key/value heads, several ranks hold the same one (multi-query: all).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    q_heads: tuple[int, int]
    kv_heads: tuple[int, int]

    @classmethod
    def of(cls, num_heads: int, num_kv_heads: int, *, head_dim: int, shard: Shard) -> "HeadSplit":
        """This rank's heads; raises `UnsupportedConfig` if they cannot be split evenly enough."""
        if num_heads % num_kv_heads:
            raise UnsupportedConfig(f"{num_heads} attention heads cannot share {num_kv_heads} key/value heads evenly")
        if shard.num_ranks <= num_kv_heads:
            group = num_heads // num_kv_heads
            first, last = shard.span(num_kv_heads)
            return cls(num_heads, num_kv_heads, head_dim, (first * group, last * group), (first, last))
        is_even = num_heads % shard.num_ranks == 0 and shard.num_ranks % num_kv_heads == 0
        is_multi_query = num_kv_heads == 1 and shard.num_ranks <= num_heads  # any heads go with the one key head
        if not (is_even or is_multi_query):
            raise UnsupportedConfig(
                f"{num_heads} attention heads with {num_kv_heads} key/value heads cannot be split over "
                f"{shard.num_ranks} ranks; choose a --tensor-parallel that divides {num_heads}"
            )
        kv_head = shard.rank * num_kv_heads // shard.num_ranks
        return cls(num_heads, num_kv_heads, head_dim, shard.span(num_heads), (kv_head, kv_head + 1))

    @property
    def num_local_heads(self) -> int:
        """Query heads of this rank."""
        return self.q_heads[1] - self.q_heads[0]

    @property
    def num_local_kv_heads(self) -> int:
        """Key/value heads of this rank."""
        return self.kv_heads[1] - self.kv_heads[0]

    @property
    def q_rows(self) -> tuple[int, int]:
        """This rank's outputs of the query projection, and inputs of the output projection."""
        return self.q_heads[0] * self.head_dim, self.q_heads[1] * self.head_dim

    @property
    def kv_rows(self) -> tuple[int, int]:
        """This rank's outputs of the key and value projections."""
        return self.kv_heads[0] * self.head_dim, self.kv_heads[1] * self.head_dim


class QKVLinear(FusedLinear):
    """The query, key and value projections as one; `qkv` splits its output into heads.

    `names` are the checkpoint's: three linears, or one that holds all queries, then all keys, then all values (GPT-2;
    with one key/value head StarCoder and Falcon 7B).
    """

    def __init__(
        self,
        num_inputs: int,
        split: HeadSplit,
        *,
        bias: bool = False,
        names: tuple[str, str, str] | str = ("q_proj", "k_proj", "v_proj"),
    ) -> None:
        num_q, num_kv = split.num_heads * split.head_dim, split.num_kv_heads * split.head_dim
        parts = [(num_q, split.q_rows), (num_kv, split.kv_rows), (num_kv, split.kv_rows)]
        super().__init__(num_inputs, claims_of(names, parts), bias=bias)
        self.split = split

    def qkv(self, x_TI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, head_dim], keys and values [T, K, head_dim] of this rank's heads."""
        split = self.split
        q, k, v = self(x_TI).split([rows[1] - rows[0] for rows in (split.q_rows, split.kv_rows, split.kv_rows)], dim=-1)
        heads = (-1, split.num_local_heads, split.head_dim), (-1, split.num_local_kv_heads, split.head_dim)
        return q.view(heads[0]), k.view(heads[1]), v.view(heads[1])


class PackedQKVLinear(FusedLinear):
    """Query, key and value projections that the checkpoint holds as one linear `name`, group by group.

    Its rows are [K, group + 2, head_dim]: for each key/value head its query heads, then the key, then the value
    (InternLM2, Falcon 40B); with as many heads of each, this is the per-head layout of GPT-NeoX and Bloom.
    """

    def __init__(self, num_inputs: int, split: HeadSplit, *, name: str, bias: bool = False) -> None:
        dim, group = split.head_dim, split.num_heads // split.num_kv_heads
        total = split.num_kv_heads * (group + 2) * dim
        self.split = split
        self.group_size = split.num_local_heads // split.num_local_kv_heads
        claims = []
        for head in range(*split.kv_heads):
            start = head * (group + 2)  # in heads: of this group's first row
            skipped = max(0, split.q_heads[0] - head * group)  # query heads of the group that lower ranks hold
            for first, last in ((start + skipped, start + skipped + self.group_size), (start + group, start + group + 2)):
                claims.append(Claim(name, total, (first * dim, last * dim)))
        super().__init__(num_inputs, claims, bias=bias)

    def qkv(self, x_TI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, head_dim], keys and values [T, K, head_dim] of this rank's heads."""
        split, group = self.split, self.group_size
        packed = self(x_TI).view(-1, split.num_local_kv_heads, group + 2, split.head_dim)
        return (
            packed[:, :, :group].reshape(-1, split.num_local_heads, split.head_dim),
            packed[:, :, group],
            packed[:, :, group + 1],
        )
