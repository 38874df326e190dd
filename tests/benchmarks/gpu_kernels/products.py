"""Products of few rows with weights of a few bits, beside torch's with the same weights in bfloat16; and those of experts."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.experts import ExpertStack, MatrixStack
from actorllm_kernels.experts import reference as experts_reference
from actorllm_kernels.experts import triton as experts
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.linear import Form, Fp8, IntWeight, WeightOnly, triton_fp8
from actorllm_kernels.linear import reference as linear_reference
from actorllm_kernels.linear import triton as linear
from actorllm_kernels.routing import Rule
from actorllm_kernels.routing import reference as routing_reference
from actorllm_kernels.routing import triton as routing
from gpu_kernels.problem import BF16, DEVICE, REHEARSAL, Problem, num_bytes, random

COPIES = 2 if REHEARSAL else 4
"""Layers of weights that are read in turn, so that none waits in the cache."""


def weight_only_problem(
    num_rows: int, shape: tuple[int, int], *, num_bits: int, chosen: Configuration | None = None
) -> Problem:
    x, form = random(num_rows, shape[1]), WeightOnly(num_bits)
    weights = [IntWeight(*form.pack(form.codes(random(*shape, seed=seed)))) for seed in range(COPIES)]
    outs = [torch.full((num_rows, shape[0]), torch.nan, dtype=BF16, device=DEVICE) for _ in weights]
    pairs = zip(weights, outs, strict=True)
    launches = [each for weight, out in pairs for each in linear.launches(x, weight, out_MN=out, chosen=chosen)]

    def rival() -> Callable[[], object]:
        dense = [weight.values().to(BF16) for weight in weights]
        return lambda: [torch.nn.functional.linear(x, each) for each in dense]

    return Problem(
        launches,
        lambda: (outs[-1], linear_reference.linear_weight_only(x.float(), weights[-1])),
        sum(num_bytes(weight.codes_OI, weight.scales_OG, x, out) for weight, out in zip(weights, outs, strict=True)),
        2 * num_rows * shape[0] * shape[1] * COPIES,
        rival,
    )


def fp8_problem(num_rows: int, shape: tuple[int, int], *, chosen: Configuration | None = None) -> Problem:
    """The rival is torch's product of the same weights in bfloat16."""
    x, out = random(num_rows, shape[1]), torch.full((num_rows, shape[0]), torch.nan, dtype=BF16, device=DEVICE)
    weight = random(*shape)
    codes, scales = linear_reference.fp8_codes(weight)
    return Problem(
        triton_fp8.launches(x, codes, scales, out_MN=out, chosen=chosen),
        lambda: (out, linear_reference.linear_fp8(x.float(), codes, scales)),
        num_bytes(codes, scales, x, out),
        2 * num_rows * shape[0] * shape[1],
        lambda: partial(torch.nn.functional.linear, x, weight),
    )


def routing_problem(num_tokens: int, num_experts: int) -> Problem:
    """The weights and experts of DeepSeek-V3's rule, which the rival chooses by torch's operators."""
    rule = Rule(num_experts, 8, "sigmoid", is_normalised=True, scale=2.5, num_groups=8, top_groups=4, group_best=2)
    logits, correction = random(num_tokens, num_experts, dtype=torch.float32), random(num_experts, dtype=torch.float32, seed=1)
    weights = torch.full((num_tokens, 8), torch.nan, device=DEVICE)
    experts = torch.full((num_tokens, 8), -1, device=DEVICE)
    launch = routing.launch(logits, correction, rule=rule, chosen=(weights, experts))

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        wanted, their_experts = routing_reference.choose(logits, correction, rule=rule)
        return torch.cat((weights, experts), dim=1), torch.cat((wanted, their_experts), dim=1)

    def rival() -> Callable[[], object]:
        return lambda: routing_reference.choose(logits, correction, rule=rule)

    return Problem([launch], results, num_bytes(logits, correction, weights, experts), rival=rival)


def experts_problem(
    num_tokens: int,
    sizes: tuple[int, int, int, int],
    *,
    form: Form | None = None,
    cut: tuple[Configuration, Configuration] | None = None,
) -> Problem:
    """Tokens that are routed at random; the weights of each expert that is chosen are read once, as codes of `form` or as values."""
    num_experts, top_k, hidden, inner = sizes
    x, chosen = random(num_tokens, hidden), random(num_tokens, num_experts, dtype=torch.float32).argsort(dim=1)[:, :top_k]
    weights = random(num_tokens, top_k, seed=1).abs()
    gate_up, down = random(num_experts, 2 * inner, hidden) / hidden**0.5, random(num_experts, hidden, inner, seed=1) / inner**0.5
    matrices = [MatrixStack(each) if form is None else stack_of_codes(form, each) for each in (gate_up, down)]
    stack, out, combine = ExpertStack(*matrices), torch.full_like(x, torch.nan), GatedProduct()

    def expected() -> torch.Tensor:
        exact = ExpertStack(*(each if each.scales_EOG is not None else MatrixStack(each.values_EOI.float()) for each in matrices))
        return experts_reference.run_experts(x.float(), weights.float(), chosen, exact, combine=combine)

    return Problem(
        experts.launches(x, weights, chosen, stack, combine=combine, out_TD=out, chosen=cut),
        lambda: (out, expected()),
        num_bytes(*(part for each in matrices for part in (each.values_EOI, each.scales_EOG))) * len(chosen.unique()) // num_experts + num_bytes(x, out, weights),
        6 * num_tokens * top_k * hidden * inner,
    )


def stack_of_codes(form: Form, weights_EOI: torch.Tensor) -> MatrixStack:
    parts = [form.by_output(form.pack(form.codes(weight_OI))) for weight_OI in weights_EOI]
    codes, scales = zip(*(part for part in parts if part is not None), strict=True)
    as_bytes = torch.stack([each.view(torch.uint8) for each in codes])  # 8-bit floats cannot be stacked everywhere
    return MatrixStack(as_bytes.view(codes[0].dtype), torch.stack(scales))


def product_cases() -> Iterator[tuple[str, Callable[..., Problem]]]:
    shape = (96, 128) if REHEARSAL else (14336, 4096)
    for num_bits in (8, 4):
        for num_rows in (1, 4, 16):
            name = f"{num_rows} rows, {shape[1]} x {shape[0]}, weights of {num_bits} bits"
            yield name, partial(weight_only_problem, num_rows, shape, num_bits=num_bits)
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
