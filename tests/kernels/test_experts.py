"""A mixture's experts: the reference against the definition, one token at a time; the Triton kernels against the reference."""

import os
import random
from dataclasses import replace

import pytest
import torch

from actorllm.layers import experts as layer
from actorllm.layers.activation import gated
from actorllm.layers.shard import Shard
from actorllm.weights.compact import CompactFormat
from actorllm.weights.formats import PlainFormat
from actorllm.weights.linear_weight import OneDNNWeight
from actorllm.weights.random import RandomWeights
from actorllm_kernels import experts as operator
from actorllm_kernels.experts import ExpertStack, MatrixStack, reference
from actorllm_kernels.gated import ACTIVATIONS, GatedProduct
from actorllm_kernels.linear import Fp8, WeightOnly

triton = pytest.importorskip("actorllm_kernels.experts.triton", exc_type=ImportError, reason="needs Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
NUM_CASES = int(os.environ.get("KERNEL_CASES", "12"))
"""Random batches for experts as values, and for experts that are stored as codes."""
CLAMPED = GatedProduct(limit=1.5, gain=1.7)


FORMS = {"int8": WeightOnly(8), "int4": WeightOnly(4), "fp8": Fp8()}


def draw_stack(
    num_experts: int, hidden: int, inner: int, *, is_full: bool, dtype: torch.dtype = torch.float32, form: str | None = None
) -> ExpertStack:
    """Of values, or of codes of a form; "8 in groups" are those that checkpoints may hold."""
    generator = torch.Generator().manual_seed(num_experts)

    def numbers(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(DEVICE, dtype)

    gate_up, down = numbers(num_experts, 2 * inner, hidden), numbers(num_experts, hidden, inner)
    biases = (numbers(num_experts, 2 * inner), numbers(num_experts, hidden)) if is_full else (None, None)
    matrices = [MatrixStack(each) if form is None else codes_of(form, each) for each in (gate_up, down)]
    return ExpertStack(*matrices, *biases, is_interleaved=is_full)


def codes_of(form: str, weights_EOI: torch.Tensor) -> MatrixStack:
    if form == "int8 in groups":
        codes = torch.randint(-127, 128, weights_EOI.shape, generator=torch.Generator().manual_seed(1), dtype=torch.int8)
        scales = torch.rand(*weights_EOI.shape[:2], weights_EOI.shape[2] // 16, generator=torch.Generator().manual_seed(2))
        return MatrixStack(codes.to(DEVICE), scales.to(DEVICE) / (127 * weights_EOI.shape[2] ** 0.5))
    return MatrixStack.of_codes(FORMS[form], weights_EOI)


def draw(num_tokens: int, hidden: int, num_experts: int, top_k: int, *, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    experts = torch.rand(num_tokens, num_experts, generator=generator).argsort(dim=1)[:, :top_k]
    x, weights = torch.randn(num_tokens, hidden, generator=generator), torch.rand(num_tokens, top_k, generator=generator)
    return x.to(DEVICE), weights.to(DEVICE), experts.to(DEVICE)


def by_hand(x_TD, weights_TK, experts_TK, stack: ExpertStack, combine: GatedProduct) -> torch.Tensor:
    out = torch.zeros_like(x_TD)
    for token, (weights, experts) in enumerate(zip(weights_TK, experts_TK.tolist(), strict=True)):
        for weight, expert in zip(weights, experts, strict=True):
            gate_up = stack.gate_up.values_EOI[expert] @ x_TD[token]
            if stack.gate_up_bias_EJ is not None:
                gate_up = gate_up + stack.gate_up_bias_EJ[expert]
            gate, up = (gate_up[::2], gate_up[1::2]) if stack.is_interleaved else gate_up.chunk(2)
            down = stack.down.values_EOI[expert] @ combine(gate.unsqueeze(0), up.unsqueeze(0))[0]
            out[token] += weight * (down if stack.down_bias_ED is None else down + stack.down_bias_ED[expert])
    return out


@pytest.mark.parametrize("is_full", [False, True])
def test_the_reference_is_the_definition(is_full):
    stack, drawn = draw_stack(6, 20, 12, is_full=is_full), draw(9, 20, 6, 3)
    combine = CLAMPED if is_full else GatedProduct("gelu")
    torch.testing.assert_close(
        reference.run_experts(*drawn, stack, combine=combine), by_hand(*drawn, stack, combine), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_equals_the_reference(seed):
    """As few tokens as one, and experts that nobody chooses; rows that lie apart, too."""
    rng, dtype = random.Random(seed), list(TOLERANCE)[seed % 3]
    num_experts, hidden, inner = rng.choice((1, 3, 8, 60)), rng.randint(17, 96), rng.randint(12, 64)
    is_full, top_k = bool(seed // 3 % 2), rng.randint(1, min(6, num_experts))
    combine = CLAMPED if is_full else GatedProduct(rng.choice(list(ACTIVATIONS)))
    stack = draw_stack(num_experts, hidden, inner, is_full=is_full, dtype=dtype)
    x, weights, experts = draw(rng.choice((1, 2, 5, 17, 70)), hidden, num_experts, top_k, seed=seed)
    x, weights = rng.choice((x, torch.cat((x, x + torch.nan), dim=1)[:, :hidden], x.t().contiguous().t())).to(dtype), weights.to(dtype)
    assert triton.suits(x, stack)
    got = triton.run_experts(x, weights, experts, stack, combine=combine)
    expected = reference.run_experts(x, weights, experts, stack, combine=combine)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected.float(), atol=TOLERANCE[dtype] * expected.abs().max().item(), rtol=0)


def draw_coded(seed: int) -> tuple[torch.dtype, ExpertStack, tuple[torch.Tensor, ...], GatedProduct]:
    """A random batch for random experts, whose gates and ups are in one form and their outputs in another."""
    rng = random.Random(seed)
    dtype, forms = list(TOLERANCE)[seed % 3], (*FORMS, "int8 in groups")
    num_experts, hidden, inner = rng.choice((1, 3, 9)), rng.choice((32, 96, 160)), rng.choice((32, 80, 144))
    is_full, top_k = rng.random() < 0.5, rng.randint(1, min(3, num_experts))
    stacks = [
        draw_stack(num_experts, hidden, inner, is_full=is_full, dtype=dtype, form=form)
        for form in (forms[seed % len(forms)], rng.choice((*forms, None)))
    ]
    stack = replace(stacks[0], down=stacks[1].down)
    drawn = draw(rng.choice((1, 2, 17, 60)), hidden, num_experts, top_k, seed=seed)
    return dtype, stack, drawn, CLAMPED if is_full else GatedProduct(rng.choice(list(ACTIVATIONS)))


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_codes_equal_the_reference(seed):
    dtype, stack, (x, weights, experts), combine = draw_coded(seed)
    x, weights = x.to(dtype), weights.to(dtype)
    assert triton.suits(x, stack)
    got = triton.run_experts(x, weights, experts, stack, combine=combine)
    exact = replace(stack, gate_up=floats(stack.gate_up), down=floats(stack.down), **biases_of(stack))
    expected = reference.run_experts(x.float(), weights.float(), experts, exact, combine=combine)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=TOLERANCE[dtype] * expected.abs().max().item(), rtol=0)


def floats(matrices: MatrixStack) -> MatrixStack:
    """What codes stand for, by the forms of linears alone."""
    return MatrixStack(torch.stack([matrices.matrix(index, torch.float32).float() for index in range(len(matrices.values_EOI))]))


def biases_of(stack: ExpertStack) -> dict[str, torch.Tensor | None]:
    return {
        name: None if bias is None else bias.float()
        for name, bias in (("gate_up_bias_EJ", stack.gate_up_bias_EJ), ("down_bias_ED", stack.down_bias_ED))
    }


@pytest.mark.parametrize("form", FORMS)
def test_codes_stand_for_what_they_do_in_a_linear(form):
    weights_EOI = torch.randn(3, 10, 50, generator=torch.Generator().manual_seed(4))
    matrices, known = codes_of(form, weights_EOI), FORMS[form]
    for index, weight_OI in enumerate(weights_EOI):
        assert torch.equal(matrices.matrix(index, torch.float32)[:, :50], known.values(known.codes(weight_OI)))


@pytest.mark.parametrize("form", [None, *FORMS])
def test_nothing_waits_for_the_device(form, monkeypatch):
    """On the meta device whatever needs a value fails; kernels are made, but there is nothing to run them on."""
    made = []
    monkeypatch.setattr(triton.Launch, "run", lambda launch: made.append(launch))  # a bound method, unlike made.append
    stack = draw_stack(6, 64, 32, is_full=False, form=form)
    parts = [
        MatrixStack(each.values_EOI.to("meta"), None if each.scales_EOG is None else each.scales_EOG.to("meta"))
        for each in (stack.gate_up, stack.down)
    ]
    x, weights, experts = (each.to("meta") for each in draw(9, 64, 6, 2))
    assert triton.run_experts(x, weights, experts, ExpertStack(*parts), combine=GatedProduct()).is_meta
    assert [launch.name for launch in made] == ["sort_kernel", "gate_up_kernel", "down_kernel", "sum_kernel"]


@pytest.mark.parametrize("chosen", [[[0]] * 40, [[5]] * 40, [[0], [5]] * 20, [[row // 17] for row in range(40)]])
def test_experts_without_tokens_and_with_all(chosen):
    stack, (x, weights, _) = draw_stack(6, 32, 16, is_full=True), draw(40, 32, 6, 1)
    experts = torch.tensor(chosen, device=DEVICE)
    got = triton.run_experts(x, weights, experts, stack, combine=CLAMPED)
    torch.testing.assert_close(got, by_hand(x, weights, experts, stack, CLAMPED), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("combine", [CLAMPED, GatedProduct("relu")])
@pytest.mark.parametrize("place", [0, 12])
def test_what_is_no_number_stays_none(combine, place):
    """A gate's row of weights, or an up's."""
    stack, (x, weights, _) = draw_stack(2, 20, 12, is_full=False), draw(5, 20, 2, 1)
    experts = torch.tensor([[0], [1], [1], [0], [1]], device=DEVICE)
    stack.gate_up.values_EOI[1, place] = torch.nan
    got = triton.run_experts(x, weights, experts, stack, combine=combine)
    assert torch.equal(got.isnan(), (experts == 1).expand(got.shape)) and 0 < int(got.isnan().sum()) < got.numel()


def test_experts_that_there_are_not_count_for_nothing(monkeypatch):
    """However memory was left."""
    stack, (x, weights, experts) = draw_stack(6, 20, 12, is_full=True), draw(9, 20, 6, 3)
    experts[::2, 1], experts[1, 2] = 6, -1
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **kinds: real(*shape, **kinds).fill_(99))
    got = triton.run_experts(x, weights, experts, stack, combine=CLAMPED)
    torch.testing.assert_close(got, reference.run_experts(x, weights, experts, stack, combine=CLAMPED), atol=1e-4, rtol=1e-4)


def test_biases_with_gaps_are_refused():
    stack, drawn = draw_stack(2, 20, 12, is_full=True), draw(5, 20, 2, 1)
    gaps = replace(stack, down_bias_ED=torch.zeros(20, 2, device=DEVICE).t())
    with pytest.raises(ValueError, match="down_bias_ED has strides"):
        triton.run_experts(*drawn, gaps, combine=CLAMPED)


def test_a_token_does_not_depend_on_its_mates():
    stack, (x, weights, experts) = draw_stack(6, 32, 16, is_full=False), draw(9, 32, 6, 3)
    together = triton.run_experts(x, weights, experts, stack, combine=GatedProduct())
    for row in range(9):
        alone = triton.run_experts(
            x[row : row + 1], weights[row : row + 1], experts[row : row + 1], stack, combine=GatedProduct()
        )
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-6)


def test_the_grid_depends_on_the_number_of_tokens_alone_and_holds_every_routing():
    generator = random.Random(3)
    for _ in range(300):
        num_tokens, num_experts, block = generator.randint(1, 60), generator.randint(1, 12), generator.choice((1, 4, 16))
        top_k = generator.randint(1, num_experts)
        counts = [0] * num_experts
        for _ in range(num_tokens):
            for expert in generator.sample(range(num_experts), top_k) if generator.random() < 0.5 else range(top_k):
                counts[expert] += 1
        needed = sum(-(-count // block) for count in counts)
        assert needed <= triton.most_blocks(num_tokens * top_k, num_experts, block)
    assert triton.most_blocks(8, 4, 4) == 5  # 5, 1, 1, 1


def test_what_the_kernel_is_not_for():
    stack = draw_stack(3, 32, 16, is_full=False)
    assert not triton.suits(torch.zeros(0, 32, device=DEVICE), stack)
    assert not triton.suits(torch.zeros(2, 32, device=DEVICE, dtype=torch.bfloat16), stack)
    narrow = MatrixStack(torch.zeros(3, 32, 32, dtype=torch.int8, device=DEVICE), torch.ones(3, 32, 4, device=DEVICE))  # groups that no tile fits
    assert not triton.suits(torch.zeros(2, 32, device=DEVICE), replace(stack, gate_up=narrow))
    odd = codes_of("int4", torch.randn(3, 32, 31, device=DEVICE))  # filled up to an even number
    assert not triton.suits(torch.zeros(2, 31, device=DEVICE), replace(stack, gate_up=odd))
    got = operator.run_experts(*draw(2, 31, 3, 1), replace(stack, gate_up=odd, down=codes_of("int4", torch.randn(3, 31, 16, device=DEVICE))), combine=CLAMPED)
    assert got.shape == (2, 31) and got.isfinite().all()


@pytest.mark.parametrize("form", [None, *FORMS])
def test_a_layer_of_experts_computes_with_the_kernels(form, monkeypatch):
    monkeypatch.setattr(layer, "takes_stacks", lambda weight: True)
    monkeypatch.setattr(OneDNNWeight, "suits", lambda weight: False)
    experts = layer.Experts(layer.ExpertSizes(8, 32, 24), gated("silu"), shard=Shard())
    storage = PlainFormat() if form is None else CompactFormat(PlainFormat(), FORMS[form])
    experts.load(RandomWeights(3, std=0.3, device=DEVICE, storage=storage), "experts.")
    drawn = draw(7, 32, 8, 2)
    assert isinstance(experts.experts, ExpertStack)
    assert (experts.experts.gate_up.scales_EOG is None) == (form is None)
    expected = reference.run_experts(*drawn, experts.experts, combine=GatedProduct())
    calls, real = [], triton.run_experts
    monkeypatch.setattr(operator, "takes_triton", lambda name, x, given: name == "experts" and given.startswith(form or "values"))
    monkeypatch.setattr(triton, "run_experts", lambda *args, **options: calls.append(args) or real(*args, **options))
    torch.testing.assert_close(experts(*drawn), expected, atol=1e-4, rtol=1e-4)
    assert len(calls) == 1
