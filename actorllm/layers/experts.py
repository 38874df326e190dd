"""Mixture of experts: a router picks a few feed-forward blocks for each token, and only those run.

Tokens are sorted by expert, so an expert is one product over just the tokens routed to it: nothing is padded or dropped, and
a token's result is the sum of its experts in their order, whatever else is in the batch. On GPUs all experts are one stack of values
or codes, whose grouped products need not wait for the counts (`actorllm_kernels.experts`). After "Mixtral of Experts" (arXiv
2401.04088) and, for groups of experts, DeepSeek-V2 (arXiv 2405.04434) and V3 (arXiv 2412.19437).

Legend: T tokens, D hidden size, E experts, K experts of one token, I an expert's inner size (of this rank), N tokens of
one expert.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from actorllm.errors import CheckpointError, UnsupportedConfig
from actorllm.layers.activation import GatedActivation
from actorllm.layers.shard import Shard
from actorllm.weights.linear_weight import LinearWeight, join_weights, joined
from actorllm.weights.source import WeightSource
from actorllm_kernels.experts import ExpertStack, MatrixStack, run_experts
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.routing import Rule, choose


@dataclass(frozen=True)
class Routing(Rule):
    """A `Rule` from a config.json: raises `UnsupportedConfig` for numbers that do not fit each other."""

    def __post_init__(self) -> None:
        group_size, rest = divmod(self.num_experts, self.num_groups)
        if rest or not self.group_best <= group_size or not 0 < self.top_groups <= self.num_groups:
            raise UnsupportedConfig(
                f"config.json: {self.num_experts} experts cannot be chosen from {self.top_groups} of {self.num_groups} groups"
            )
        if not 0 < self.top_k <= self.top_groups * group_size:
            raise UnsupportedConfig(
                f"config.json: {self.top_k} experts a token cannot be chosen out of {self.top_groups * group_size}"
            )


class Router(nn.Module):
    """hidden [T, D] -> (weights [T, K] in its dtype, experts [T, K]). Whole on every rank.

    It is computed in float32, whatever the model's dtype: a small error of a logit may choose another expert. `bias` is
    added to the logits; `correction` names a tensor that is added to the scores for choosing alone.
    """

    def __init__(self, hidden_size: int, routing: Routing, *, bias: bool = False, correction: str | None = None) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.routing = routing
        self.has_bias = bias
        self.correction_name = correction
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.correction: Tensor | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        num_experts = self.routing.num_experts
        self.weight = source.tensor(f"{prefix}weight", (num_experts, self.hidden_size)).float()
        if self.has_bias:
            self.bias = source.tensor(f"{prefix}bias", (num_experts,)).float()
        if self.correction_name is not None:
            self.correction = source.tensor(f"{prefix}{self.correction_name}", (num_experts,)).float()

    def unload(self) -> None:
        self.weight = self.bias = self.correction = None

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        assert self.weight is not None, "the layer has no weights yet"
        logits_TE = nn.functional.linear(x_TD.float(), self.weight, self.bias)
        weights_TK, experts_TK = choose(logits_TE, self.correction, rule=self.routing)
        return weights_TK.to(x_TD.dtype), experts_TK


@dataclass(frozen=True)
class ExpertBiases:
    """Biases of one expert: `gate_up` [2 I] and `down` [D], the latter on one rank only, as the ranks are summed."""

    gate_up: Tensor
    down: Tensor | None


class Expert(nn.Module):
    """One expert's part on this rank: x [N, D] -> [N, D], still to be summed over ranks. `is_interleaved`: gate and up take
    turns in the outputs of `gate_up`."""

    def __init__(
        self, gate_up: LinearWeight, down: LinearWeight, *, biases: ExpertBiases | None = None, is_interleaved: bool = False
    ) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.down = down
        self.biases = biases
        self.is_interleaved = is_interleaved

    def forward(self, x_ND: Tensor, combine: GatedActivation) -> Tensor:
        gate_up = self.gate_up(x_ND)
        if self.biases is not None:
            gate_up = gate_up + self.biases.gate_up
        gate, up = (gate_up[:, ::2], gate_up[:, 1::2]) if self.is_interleaved else gate_up.chunk(2, dim=-1)
        out_ND = self.down(combine(gate, up))
        return out_ND if self.biases is None or self.biases.down is None else out_ND + self.biases.down


def clamped_swiglu(limit: float, gain: float) -> GatedProduct:
    """gpt-oss's inner function: `gate * sigmoid(gain * gate) * (up + 1)`, where gate is at most `limit`, and up within it
    (arXiv 2508.10925)."""
    return GatedProduct(limit=limit, gain=gain)


@dataclass(frozen=True)
class ExpertSizes:
    """How many experts there are, and how large each one is over all ranks."""

    num_experts: int
    hidden_size: int
    intermediate_size: int


class Experts(nn.Module):
    """(x [T, D], weights [T, K], experts [T, K]) -> [T, D], every expert's inner size split over ranks, one sum over ranks.

    A checkpoint holds `{index}.{name}` for each of `names` (gate, up, down; None: no checkpoint does), or all experts in
    two stacks: `fused_names`, [E, 2 I, D] (gates, then ups; in turns where `is_interleaved`) and [E, D, I]. With `bias`
    every linear has one, which the stacks' are called `_bias`.
    """

    def __init__(
        self,
        sizes: ExpertSizes,
        combine: GatedActivation,
        *,
        shard: Shard,
        bias: bool = False,
        names: tuple[str, str, str] | None = ("gate_proj", "up_proj", "down_proj"),
        fused_names: tuple[str, str] = ("gate_up_proj", "down_proj"),
        is_interleaved: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.combine = combine
        self.shard = shard
        self.has_bias = bias
        self.names = names
        self.fused_names = fused_names
        self.is_interleaved = is_interleaved
        self.span = shard.span(sizes.intermediate_size)
        self.experts: nn.ModuleList | ExpertStack | None = None

    def load(self, source: WeightSource, prefix: str) -> None:
        names = self.names
        if names is not None and source.has(prefix + self.fused_names[0]) and not source.has(f"{prefix}0.{names[0]}.weight"):
            names = None
        pulled = self._unstack(source, prefix) if names is None else self._pull_each(source, prefix, names)
        is_known = isinstance(self.combine, GatedProduct)  # another function cannot become a part of a kernel
        experts = stacked(pulled, self.sizes.num_experts) if is_known else pulled
        self.experts = experts if isinstance(experts, ExpertStack) else nn.ModuleList(experts)

    def unload(self) -> None:
        self.experts = None

    def forward(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        assert self.experts is not None, "the layer has no weights yet"
        if isinstance(self.experts, ExpertStack):
            assert isinstance(self.combine, GatedProduct)
            out_TD = run_experts(x_TD, weights_TK, experts_TK, self.experts, combine=self.combine)
            return self.shard.collectives.all_reduce(out_TD)
        chosen = experts_TK.flatten()
        order = chosen.argsort(stable=True)
        tokens, weights = order // experts_TK.shape[1], weights_TK.flatten()[order].unsqueeze(1)
        out_TD = torch.zeros_like(x_TD)
        begin = 0
        for index, count in enumerate(chosen.bincount(minlength=self.sizes.num_experts).tolist()):
            if count:
                mine = tokens[begin : begin + count]
                out_ND = self.experts[index](x_TD[mine], self.combine)
                out_TD.index_add_(0, mine, out_ND * weights[begin : begin + count])
                begin += count
        return self.shard.collectives.all_reduce(out_TD)

    def _pull_each(self, source: WeightSource, prefix: str, names: tuple[str, str, str]) -> Iterator[Expert]:
        hidden, inner, span = self.sizes.hidden_size, self.sizes.intermediate_size, self.span
        for index in range(self.sizes.num_experts):
            gate, up, down = (f"{prefix}{index}.{name}" for name in names)
            biases = None
            if self.has_bias:
                parts = [source.tensor(f"{name}.bias", (inner,), rows=span) for name in (gate, up)]
                down_bias = source.tensor(f"{down}.bias", (hidden,))
                biases = ExpertBiases(joined(parts), down_bias if self.shard.rank == 0 else None)
            gate_up = join_weights([source.linear(name, (inner, hidden), rows=span) for name in (gate, up)])
            yield Expert(gate_up, join_weights([source.linear(down, (hidden, inner), cols=span)]), biases=biases)

    def _unstack(self, source: WeightSource, prefix: str) -> Iterator[Expert]:
        num_experts, hidden, inner = self.sizes.num_experts, self.sizes.hidden_size, self.sizes.intermediate_size
        gate_up, down = (prefix + name for name in self.fused_names)
        begin, end = self.span
        parts = [(begin, end), (inner + begin, inner + end)]
        if self.is_interleaved or end - begin == inner:
            parts = [(2 * begin, 2 * end)]
        biases: list[ExpertBiases | None] = [None] * num_experts
        if self.has_bias:
            whole = source.tensor(f"{gate_up}_bias", (num_experts, 2 * inner))
            gate_up_biases = torch.cat([whole[:, slice(*rows)] for rows in parts], dim=1)
            down_biases = source.tensor(f"{down}_bias", (num_experts, hidden))
            is_first = self.shard.rank == 0
            biases = [
                ExpertBiases(gate_up_biases[index], down_biases[index] if is_first else None) for index in range(num_experts)
            ]
        gate_ups = zip(*(source.stack(gate_up, (num_experts, 2 * inner, hidden), rows=rows) for rows in parts), strict=True)
        downs = source.stack(down, (num_experts, hidden, inner), cols=self.span)
        for weights, down_weight, bias in zip(gate_ups, downs, biases, strict=True):
            yield Expert(join_weights(list(weights)), down_weight.packed(), biases=bias, is_interleaved=self.is_interleaved)


def stacked(experts: Iterator[Expert], num_experts: int) -> ExpertStack | Iterator[Expert]:
    """All experts in one place, each dropped once it is copied there; one by one as they are on a CPU, which packs each.
    Raises `CheckpointError`."""
    first = next(experts)
    rest = chain((first,), experts)
    parts = parts_of(first)
    if parts is None or not takes_stacks(parts[0]):
        return rest
    stacks = [None if part is None else part.new_empty(num_experts, *part.shape) for part in parts]
    for index, expert in enumerate(rest):
        parts = parts_of(expert)
        if parts is None or [_kind(part) for part in parts] != [_kind(part, of_each=True) for part in stacks]:
            raise CheckpointError(
                "some linears of a layer's experts are stored as codes, and others plainly or in other groups: store all of them alike"
            )
        for stack, part in zip(stacks, parts, strict=True):
            if stack is not None and part is not None:
                stack[index] = part
    gate_up, gate_up_scales, down, down_scales, *biases = stacks
    assert gate_up is not None and down is not None
    matrices = MatrixStack(gate_up, gate_up_scales), MatrixStack(down, down_scales)
    return ExpertStack(*matrices, *biases, is_interleaved=first.is_interleaved)


def parts_of(expert: Expert) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None] | None:
    """Values or codes and scales of both linears, and their biases; None where they cannot be stacked."""
    gate_up, down, biases = expert.gate_up.by_output(), expert.down.by_output(), expert.biases
    if gate_up is None or down is None:
        return None
    return (*gate_up, *down, None if biases is None else biases.gate_up, None if biases is None else biases.down)


def _kind(part: Tensor | None, *, of_each: bool = False) -> tuple[torch.dtype, torch.Size] | None:
    """What must be alike to be stacked; `of_each` of a stack's parts."""
    return None if part is None else (part.dtype, part.shape[1:] if of_each else part.shape)


def takes_stacks(weight: Tensor) -> bool:
    """Whether experts are better one stack where this weight lies."""
    return weight.device.type != "cpu"


class SparseMLP(nn.Module):
    """A feed-forward block of experts: x [T, D] -> [T, D], by the names that most checkpoints use (`gate`, `experts`)."""

    def __init__(self, router: Router, experts: Experts) -> None:
        super().__init__()
        self.gate = router
        self.experts = experts

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.experts(x_TD, *self.gate(x_TD))
