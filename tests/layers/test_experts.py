"""Routers and experts against the definition written out, one token and one expert at a time."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from actorllm.errors import CheckpointError, UnsupportedConfig
from actorllm.layers import experts as experts_layer
from actorllm.layers.activation import gated
from actorllm.layers.experts import Experts, ExpertSizes, Router, Routing, SparseMLP, clamped_swiglu
from actorllm.layers.shard import Shard
from actorllm.testing.recording import RecordingWeights
from actorllm.testing.tiny import on_thread_ranks
from actorllm.weights.checkpoint import Checkpoint
from actorllm.weights.compact import CompactWeight
from actorllm.weights.linear_weight import OneDNNWeight
from actorllm.weights.random import RandomWeights
from actorllm_kernels.experts import ExpertStack
from actorllm_kernels.linear import Bf16

WEIGHTS = RandomWeights(3, std=0.5)
NUM_EXPERTS, HIDDEN, INNER = 8, 12, 10
SIZES = ExpertSizes(NUM_EXPERTS, HIDDEN, INNER)
NAMES = ("gate_proj", "up_proj", "down_proj")
X = torch.randn(17, HIDDEN, generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=[False, True], ids=["one by one", "one stack"])
def is_stacked(request, monkeypatch) -> bool:
    """Experts as CPUs have them, and as GPUs do."""
    monkeypatch.setattr(experts_layer, "takes_stacks", lambda weight: request.param)
    monkeypatch.setattr(OneDNNWeight, "suits", lambda weight: False)
    return request.param


def chosen_by_hand(logits: list[float], routing: Routing, correction: list[float]) -> dict[int, float]:
    """Expert -> weight for one token, in plain Python."""
    if routing.scores == "sigmoid":
        scores = [1 / (1 + math.exp(-logit)) for logit in logits]
    else:
        scores = [math.exp(logit) / sum(math.exp(other) for other in logits) for logit in logits]
    merits = [score + more for score, more in zip(scores, correction, strict=True)]
    size = len(logits) // routing.num_groups
    groups = [range(first, first + size) for first in range(0, len(logits), size)]
    groups.sort(key=lambda group: -sum(sorted((merits[index] for index in group), reverse=True)[: routing.group_best]))
    allowed = [index for group in groups[: routing.top_groups] for index in group]
    best = sorted(allowed, key=lambda index: -merits[index])[: routing.top_k]
    total = sum(scores[index] for index in best) if routing.is_normalised else 1.0
    return {index: scores[index] / total * routing.scale for index in best}


def expert_by_hand(x_D: torch.Tensor, prefix: str, *, bias: bool, names=NAMES, clamp: float = math.inf) -> torch.Tensor:
    """One expert on one token."""
    shapes = ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
    gate, up, down = (WEIGHTS.tensor(f"{prefix}{name}.weight", shape) for name, shape in zip(names, shapes, strict=True))
    biases = [WEIGHTS.tensor(f"{prefix}{name}.bias", (size,)) * bias for name, (size, _) in zip(names, shapes, strict=True)]
    inner = F.silu(gate @ x_D + biases[0]).clamp(max=clamp) * (up @ x_D + biases[1])
    return down @ inner + biases[2]


def loaded(layer, prefix: str, source=WEIGHTS):
    layer.load(source, prefix)
    return layer


ROUTINGS = [
    Routing(NUM_EXPERTS, 2, is_normalised=True),
    Routing(NUM_EXPERTS, 3, is_normalised=False),
    Routing(NUM_EXPERTS, 1, scale=2.5),
    Routing(NUM_EXPERTS, 8, is_normalised=True),
    Routing(NUM_EXPERTS, 3, num_groups=4, top_groups=2, scale=16.0),
    Routing(NUM_EXPERTS, 3, scores="sigmoid", is_normalised=True, num_groups=2, top_groups=1, group_best=2, scale=2.5),
]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_router_chooses_by_its_definition(routing, has_bias):
    router = loaded(Router(HIDDEN, routing, bias=has_bias, correction="correction" if has_bias else None), "gate.")
    weights_TK, experts_TK = router(X)
    logits = F.linear(X, WEIGHTS.tensor("gate.weight", (NUM_EXPERTS, HIDDEN)))
    correction = torch.zeros(NUM_EXPERTS)
    if has_bias:
        logits = logits + WEIGHTS.tensor("gate.bias", (NUM_EXPERTS,))
        correction = WEIGHTS.tensor("gate.correction", (NUM_EXPERTS,))
    for token in range(len(X)):
        wanted = chosen_by_hand(logits[token].tolist(), routing, correction.tolist())
        got = dict(zip(experts_TK[token].tolist(), weights_TK[token].tolist(), strict=True))
        assert got == pytest.approx(wanted, rel=1e-5)


def test_a_router_computes_in_float32():
    half = RandomWeights(3, std=0.5, dtype=torch.bfloat16)
    router = loaded(Router(HIDDEN, Routing(NUM_EXPERTS, NUM_EXPERTS)), "gate.", half)
    x_TD = X.to(torch.bfloat16)
    weights_TK, experts_TK = router(x_TD)
    wanted = F.linear(x_TD.float(), half.tensor("gate.weight", (NUM_EXPERTS, HIDDEN)).float()).softmax(dim=-1)
    assert weights_TK.dtype == torch.bfloat16
    assert torch.equal(weights_TK, wanted.gather(1, experts_TK).to(torch.bfloat16))


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 0}, {"top_k": 9}, {"top_k": 2, "num_groups": 3}, {"top_k": 2, "num_groups": 4, "top_groups": 5},
        {"top_k": 3, "num_groups": 4, "top_groups": 1}, {"top_k": 1, "num_groups": 8, "group_best": 2},
    ],
)  # fmt: skip
def test_a_routing_that_cannot_be_is_refused(settings):
    with pytest.raises(UnsupportedConfig):
        Routing(NUM_EXPERTS, **settings)


def moe_by_hand(routed: tuple[torch.Tensor, torch.Tensor], **settings) -> torch.Tensor:
    rows = []
    for x_D, weights_K, experts_K in zip(X, *routed, strict=True):
        parts = [w * expert_by_hand(x_D, f"mlp.experts.{e}.", **settings) for w, e in zip(weights_K, experts_K.tolist(), strict=True)]
        rows.append(sum(parts))
    return torch.stack(rows)


def route(top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(top_k)
    experts_TK = torch.rand(len(X), NUM_EXPERTS, generator=generator).argsort(dim=1)[:, :top_k]
    return torch.rand(len(X), top_k, generator=generator), experts_TK


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("names", [NAMES, ("w1", "w3", "w2")])
def test_experts_compute_their_tokens_alone(names, bias, is_stacked):
    experts = loaded(Experts(SIZES, gated("silu"), shard=Shard(), bias=bias, names=names), "mlp.experts.")
    routed = route(3)
    torch.testing.assert_close(experts(X, *routed), moe_by_hand(routed, bias=bias, names=names), atol=1e-5, rtol=1e-5)


def test_the_inner_function_can_be_replaced():
    experts = loaded(Experts(SIZES, lambda gate, up: F.silu(gate).clamp(max=0.3) * up, shard=Shard()), "mlp.experts.")
    routed = route(2)
    torch.testing.assert_close(experts(X, *routed), moe_by_hand(routed, bias=False, clamp=0.3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_ranks_sum_up_and_add_the_bias_once(num_ranks, bias, is_stacked):
    def work(shard):
        return loaded(Experts(SIZES, gated("silu"), shard=shard, bias=bias), "mlp.experts.")(X, *route(2))

    for got in on_thread_ranks(num_ranks, work):
        torch.testing.assert_close(got, moe_by_hand(route(2), bias=bias), atol=1e-5, rtol=1e-5)


def fused_checkpoint(folder, *, is_interleaved: bool, is_transposed: bool) -> Checkpoint:
    """The experts of `WEIGHTS` as two stacks and their biases."""
    tensors = {}
    for ending, inner in (("weight", (INNER, HIDDEN)), ("bias", (INNER,))):
        stacks = []
        for name, shape in zip(NAMES, (inner, inner, (HIDDEN, INNER)[: len(inner)]), strict=True):
            parts = [WEIGHTS.tensor(f"mlp.experts.{index}.{name}.{ending}", shape) for index in range(NUM_EXPERTS)]
            stacks.append(torch.stack(parts))
        gate_up = torch.stack(stacks[:2], dim=2).flatten(1, 2) if is_interleaved else torch.cat(stacks[:2], dim=1)
        for name, tensor in (("gate_up_proj", gate_up), ("down_proj", stacks[2])):
            stored = tensor.transpose(1, 2) if is_transposed and ending == "weight" else tensor
            tensors[f"mlp.experts.{name}" + "_bias" * (ending == "bias")] = stored.contiguous()
    save_file(tensors, folder / "model.safetensors")
    checkpoint = Checkpoint.open(folder)
    checkpoint.transpose(["*.experts.*_proj"] if is_transposed else [])
    return checkpoint


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize(("is_interleaved", "is_transposed"), [(False, False), (True, True)])
def test_stacks_are_the_same_experts(tmp_path, num_ranks, bias, is_interleaved, is_transposed, is_stacked):
    with fused_checkpoint(tmp_path, is_interleaved=is_interleaved, is_transposed=is_transposed) as checkpoint:

        def work(shard):
            experts = Experts(SIZES, gated("silu"), shard=shard, bias=bias, is_interleaved=is_interleaved)
            return loaded(experts, "mlp.experts.", checkpoint)(X, *route(2))

        for got in on_thread_ranks(num_ranks, work):
            torch.testing.assert_close(got, moe_by_hand(route(2), bias=bias), atol=1e-5, rtol=1e-5)
        checkpoint.finish({} if bias else {"*_bias": "not asked for"})


def test_stacks_that_no_checkpoint_takes_apart():
    source = RecordingWeights(WEIGHTS)
    loaded(Experts(SIZES, gated("silu"), shard=Shard(1, 2), names=None), "experts.", source)
    assert source.pulled == {"experts.gate_up_proj": [(5, 10), (15, 20)], "experts.down_proj": [(0, HIDDEN)]}


def test_the_clamped_inner_function():
    gate, up = torch.tensor([-9.0, 0.5, 3.0]), torch.tensor([4.0, -4.0, 1.0])
    wanted = [g * (1 / (1 + math.exp(-1.7 * g))) * (u + 1) for g, u in ((-9.0, 2.0), (0.5, -2.0), (2.0, 1.0))]
    assert clamped_swiglu(2.0, 1.7)(gate, up).tolist() == pytest.approx(wanted)


class CountingExperts(Experts):
    """Notes how many tokens each expert is given."""

    def load(self, source, prefix):
        super().load(source, prefix)
        assert self.experts is not None
        self.given = []
        for index, expert in enumerate(self.experts):
            expert.register_forward_pre_hook(lambda _, args, index=index: self.given.append((index, len(args[0]))))


def test_nothing_is_padded_and_idle_experts_do_not_run():
    experts = loaded(CountingExperts(SIZES, gated("silu"), shard=Shard()), "mlp.experts.")
    experts_TK = torch.tensor([[1, 5], [5, 7], [1, 5]])
    experts(X[:3], torch.ones(3, 2), experts_TK)
    assert experts.given == [(1, 2), (5, 3), (7, 1)]


def test_batch_mates_change_nothing(is_stacked):
    block = SparseMLP(Router(HIDDEN, Routing(NUM_EXPERTS, 2, is_normalised=True)), Experts(SIZES, gated("silu"), shard=Shard()))
    loaded(block.gate, "mlp.gate.")
    loaded(block.experts, "mlp.experts.")
    assert isinstance(block.experts.experts, ExpertStack) == is_stacked
    together = block(X)
    for token in range(len(X)):
        torch.testing.assert_close(block(X[token : token + 1])[0], together[token], atol=1e-5, rtol=1e-5)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(block(X[order]), together[order], atol=1e-5, rtol=1e-5)


def test_every_tensor_is_claimed_once_and_given_back():
    source = RecordingWeights(WEIGHTS)
    experts = loaded(Experts(SIZES, gated("silu"), shard=Shard(1, 2)), "mlp.experts.", source)
    assert sorted(source.pulled) == sorted(f"mlp.experts.{index}.{name}.weight" for index in range(NUM_EXPERTS) for name in NAMES)
    experts.unload()
    assert not list(experts.parameters())


def test_experts_are_stored_alike(is_stacked):
    class Mixed(RandomWeights):
        """The second expert's output is kept as codes."""

        def linear(self, name, shape, *, rows=None, cols=None):
            weight = super().linear(name, shape, rows=rows, cols=cols)
            return CompactWeight(Bf16(), Bf16().codes(weight.dense())) if name == "mlp.experts.1.down_proj" else weight

    experts = Experts(SIZES, gated("silu"), shard=Shard())
    if is_stacked:
        with pytest.raises(CheckpointError, match="store all of them alike"):
            experts.load(Mixed(3), "mlp.experts.")
    else:
        assert loaded(experts, "mlp.experts.", Mixed(3))(X, *route(2)).shape == X.shape
