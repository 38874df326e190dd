"""Products with weights of a few bits, beside torch's with the same weights in bfloat16; and those of experts."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from actorllm_kernels.comparison import tolerance
from actorllm_kernels.configurations import Configuration
from actorllm_kernels.experts import ExpertStack, MatrixStack
from actorllm_kernels.experts import reference as experts_reference
from actorllm_kernels.experts import triton as experts
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.linear import Form, Fp8, IntWeight, WeightOnly, triton_expand, triton_fp8
from actorllm_kernels.linear import reference as linear_reference
from actorllm_kernels.linear import triton as linear
from actorllm_kernels.routing import Rule
from actorllm_kernels.routing import reference as routing_reference
from actorllm_kernels.routing import triton as routing
from gpu_kernels.problem import BF16, DEVICE, REHEARSAL, Pair, Problem, normal, num_bytes

COPIES = 2 if REHEARSAL else 4
"""Layers of weights that are read in turn, so that none waits in the cache."""


def weight_only_problem(
    num_rows: int, shape: tuple[int, int], *, num_bits: int, group_len: int | None = None, chosen: Configuration | None = None
) -> Problem:
    """Codes of 4 bits have a scale for each `group_len` inputs."""
    x, form = normal(num_rows, shape[1]), WeightOnly(num_bits)
    weights = [IntWeight(*form.pack(codes_of(normal(*shape, seed=seed), form, group_len))) for seed in range(COPIES)]
    outs = [torch.full((num_rows, shape[0]), torch.nan, dtype=BF16, device=DEVICE) for _ in weights]
    pairs = zip(weights, outs, strict=True)
    launches = [each for weight, out in pairs for each in linear.launches(x, weight, out_MN=out, chosen=chosen)]

    def rival() -> Callable[[], object]:
        dense = [weight.values().to(BF16) for weight in weights]
        return lambda: [torch.nn.functional.linear(x, each) for each in dense]

    def results() -> Iterator[Pair]:
        for weight, out in zip(weights, outs, strict=True):
            yield out, linear_reference.linear_weight_only(x.float(), weight)

    return Problem(
        launches,
        results,
        sum(num_bytes(weight.codes_OI, weight.scales_OG, x, out) for weight, out in zip(weights, outs, strict=True)),
        2 * num_rows * shape[0] * shape[1] * COPIES,
        rival,
    )


def expand_problem(shape: tuple[int, int], *, num_bits: int, chosen: Configuration | None = None) -> Problem:
    """Values of codes, for torch's product of more rows than the kernel takes."""
    form = WeightOnly(num_bits)
    weights = [IntWeight(*form.pack(form.codes(normal(*shape, seed=seed)))) for seed in range(COPIES)]
    outs = [torch.full(shape, torch.nan, dtype=BF16, device=DEVICE) for _ in weights]
    pairs = [*zip(weights, outs, strict=True)]
    return Problem(
        [triton_expand.launch(weight, out, chosen=chosen) for weight, out in pairs],
        lambda: ((out, weight.values()) for weight, out in pairs),
        sum(num_bytes(weight.codes_OI, weight.scales_OG, out) for weight, out in pairs),
    )


def codes_of(weight: torch.Tensor, form: WeightOnly, group_len: int | None) -> tuple[torch.Tensor, ...]:
    return form.codes(weight) if group_len is None else linear_reference.int4_codes(weight, group_len)


def fp8_problem(num_rows: int, shape: tuple[int, int], *, chosen: Configuration | None = None) -> Problem:
    """The rival is torch's product of the same weights in bfloat16."""
    x, weights = normal(num_rows, shape[1]), [normal(*shape, seed=seed) for seed in range(COPIES)]
    outs = [torch.full((num_rows, shape[0]), torch.nan, dtype=BF16, device=DEVICE) for _ in weights]
    coded = [linear_reference.fp8_codes(weight) for weight in weights]
    launches = [
        each for codes, out in zip(coded, outs, strict=True) for each in triton_fp8.launches(x, *codes, out_MN=out, chosen=chosen)
    ]

    def results() -> Iterator[Pair]:
        for codes, out in zip(coded, outs, strict=True):
            yield out, linear_reference.linear_fp8(x.float(), *codes)

    return Problem(
        launches,
        results,
        sum(num_bytes(*codes, x, out) for codes, out in zip(coded, outs, strict=True)),
        2 * num_rows * shape[0] * shape[1] * COPIES,
        lambda: lambda: [torch.nn.functional.linear(x, weight) for weight in weights],
        is_fp8=True,
    )


def routing_problem(num_tokens: int, num_experts: int) -> Problem:
    """The weights and experts of DeepSeek-V3's rule, which the rival chooses by torch's operators."""
    rule = Rule(num_experts, 8, "sigmoid", is_normalised=True, scale=2.5, num_groups=8, top_groups=4, group_best=2)
    logits, correction = normal(num_tokens, num_experts, dtype=torch.float32), normal(num_experts, dtype=torch.float32, seed=1)
    weights = torch.full((num_tokens, 8), torch.nan, device=DEVICE)
    experts = torch.full((num_tokens, 8), -1, device=DEVICE)
    launch = routing.launch(logits, correction, rule=rule, chosen=(weights, experts))

    def results() -> list[Pair]:
        wanted, their_experts = routing_reference.choose(logits, correction, rule=rule)
        return [(experts, their_experts), (weights, wanted)]

    def rival() -> Callable[[], object]:
        return lambda: routing_reference.choose(logits, correction, rule=rule)

    size = num_bytes(logits, correction, weights, experts)
    return Problem([launch], results, size, rival=rival, largest_share=0.001, allowed=tolerance(torch.float32))


def experts_problem(
    num_tokens: int,
    sizes: tuple[int, int, int, int],
    *,
    form: Form | None = None,
    cut: tuple[Configuration, Configuration] | None = None,
) -> Problem:
    """Tokens that are routed at random; the weights of each expert that is chosen are read once, as codes of `form` or as values."""
    num_experts, top_k, hidden, inner = sizes
    x, scores = normal(num_tokens, hidden), normal(num_tokens, num_experts, dtype=torch.float32)
    chosen = scores.argsort(dim=1)[:, :top_k].contiguous()
    weights = normal(num_tokens, top_k, seed=1).abs()
    gate_up, down = normal(num_experts, 2 * inner, hidden) / hidden**0.5, normal(num_experts, hidden, inner, seed=1) / inner**0.5
    matrices = [MatrixStack(each) if form is None else MatrixStack.of_codes(form, each) for each in (gate_up, down)]
    stack, out, combine = ExpertStack(*matrices), torch.full_like(x, torch.nan), GatedProduct()

    def expected() -> torch.Tensor:
        exact = ExpertStack(*(each if each.scales_EOG is not None else MatrixStack(each.values_EOI.float()) for each in matrices))
        return experts_reference.run_experts(x.float(), weights.float(), chosen, exact, combine=combine)

    of_all = num_bytes(*(part for each in matrices for part in (each.values_EOI, each.scales_EOG)))
    return Problem(
        experts.launches(x, weights, chosen, stack, combine=combine, out_TD=out, chosen=cut),
        lambda: [(out, expected())],
        of_all * len(chosen.unique()) // num_experts + num_bytes(x, out, weights),
        6 * num_tokens * top_k * hidden * inner,
    )


def product_cases() -> Iterator[tuple[str, Callable[..., Problem]]]:
    shape = (96, 128) if REHEARSAL else (14336, 4096)
    for num_bits in (8, 4):
        for num_rows in (1, 4, 16, 65, 256):
            name = f"{num_rows} rows, {shape[1]} x {shape[0]}, weights of {num_bits} bits"
            yield name, partial(weight_only_problem, num_rows, shape, num_bits=num_bits)
        yield f"expand {shape[1]} x {shape[0]}, weights of {num_bits} bits", partial(expand_problem, shape, num_bits=num_bits)
    for num_rows, group_len in itertools.product((4,) if REHEARSAL else (1, 16), (32, 128)):
        sizes = shape if group_len == 32 or not REHEARSAL else (shape[0], 2 * group_len)
        name = f"{num_rows} rows, {sizes[1]} x {sizes[0]}, weights of 4 bits in groups of {group_len}"
        yield name, partial(weight_only_problem, num_rows, sizes, num_bits=4, group_len=group_len)
    for num_rows in (1, 16, 40) if REHEARSAL else (1, 16, 64, 4096):
        yield f"{num_rows} rows, {shape[1]} x {shape[0]}, fp8", partial(fp8_problem, num_rows, shape)
    sizes = (8, 2, 64, 32) if REHEARSAL else (128, 8, 2048, 768)
    for num_tokens in (4,) if REHEARSAL else (64, 4096):
        yield f"choose 8 of 256 experts for {num_tokens} tokens", partial(routing_problem, num_tokens, 256)
    for num_tokens in (4, 12) if REHEARSAL else (1, 16, 64, 4096):
        name = f"{num_tokens} tokens, {sizes[1]} of {sizes[0]} experts, {sizes[2]} x {sizes[3]}"
        yield name, partial(experts_problem, num_tokens, sizes)
    for form in (WeightOnly(8), WeightOnly(4), Fp8()):
        for num_tokens in (4,) if REHEARSAL else (16, 64):
            name = f"{num_tokens} tokens, {sizes[1]} of {sizes[0]} experts, {sizes[2]} x {sizes[3]}, {form.name}"
            yield name, partial(experts_problem, num_tokens, sizes, form=form)
