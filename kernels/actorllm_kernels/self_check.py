"""Compares the Triton kernels once with their references, on the GPU that they will run on.

A kernel may compile and still be wrong there: another GPU, driver or version of Triton than it was tested with. One that
fails is not used; its reference is, with a warning that says so. The check waits for the GPU, so it belongs before the first step:
`failing` settles all operators then, and attention's for the heads that will be served. What it was not told of is checked when it
is first used.

Legend: T tokens, H query heads, K key/value heads, D head_dim, N slots.
"""

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from actorllm_kernels.attention import RaggedKeys, flat_spans
from actorllm_kernels.attention import reference as attention_reference
from actorllm_kernels.attention import triton as attention_triton
from actorllm_kernels.backends import Heads
from actorllm_kernels.embedding import reference as embedding_reference
from actorllm_kernels.embedding import triton as embedding_triton
from actorllm_kernels.experts import ExpertStack, MatrixStack
from actorllm_kernels.experts import reference as experts_reference
from actorllm_kernels.experts import triton as experts_triton
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.gated import reference as gated_reference
from actorllm_kernels.gated import triton as gated_triton
from actorllm_kernels.latent_attention import attend_latent_reference, rotate_and_store_latent_reference
from actorllm_kernels.linear import Fp8, IntWeight, WeightOnly, triton_fp8
from actorllm_kernels.linear import reference as linear_reference
from actorllm_kernels.linear import triton as linear_triton
from actorllm_kernels.norm import reference as norm_reference
from actorllm_kernels.norm import triton as norm_triton
from actorllm_kernels.quantize import LARGEST, dequantize, dequantize_parts, quantize
from actorllm_kernels.rotary_store import Angles
from actorllm_kernels.rotary_store import reference as store_reference
from actorllm_kernels.rotary_store import triton as store_triton
from actorllm_kernels.routing import Rule
from actorllm_kernels.routing import reference as routing_reference
from actorllm_kernels.routing import triton as routing_triton
from actorllm_kernels.sampling import Adjustments, Needs, Rows, Seen
from actorllm_kernels.sampling import reference as sampling_reference
from actorllm_kernels.sampling import triton as sampling_triton
from actorllm_kernels.token_ids import reference as ids_reference
from actorllm_kernels.token_ids import triton as ids_triton

logger = logging.getLogger(__name__)

LARGEST_ERROR = 0.02
"""Of the norm of the reference's result; bfloat16 rounds to 0.004. Integers have to be the same."""
Results = Iterator[tuple[str, Tensor, Tensor]]
"""What was compared, what the kernels gave and what the reference gives."""


@functools.cache
def is_right(operator: str, device: torch.device, heads: Heads | None = None) -> bool:
    """Whether the operator's kernels run on the device and give what the reference gives; found out once (for each kind of heads)."""
    of_heads = "" if heads is None else f" for heads of {heads.key_size} and {heads.value_size} in {heads.dtype}"
    try:
        found = CHECKS[operator](device) if operator in CHECKS else CHECKS_OF_HEADS[operator](device, heads or USUAL[operator])
        for name, got, expected in found:
            error = difference(got, expected)
            if not error < LARGEST_ERROR:  # NaN is not
                logger.warning(
                    "the Triton kernels of %s are wrong on %s%s (%s: relative error %.3g); its slower reference runs instead",
                    operator, device, of_heads, name, error,
                )  # fmt: skip
                return False
    except Exception as error:  # boundary: whatever a compiler or driver raises, there is a reference
        logger.warning(
            "the Triton kernels of %s do not run on %s%s, its slower reference does: %r", operator, device, of_heads, error
        )
        return False
    return True


def difference(got: Tensor, expected: Tensor) -> float:
    """Relative, by the norm; of integers, where a near one is as wrong as any, 1 if one differs."""
    if not expected.is_floating_point():
        return float(not torch.equal(got, expected))
    return ((got.float() - expected.float()).norm() / expected.float().norm()).item()


def failing(device: torch.device, heads: Mapping[str, Collection[Heads]] | None = None) -> list[str]:
    """The operators whose kernels are not used on this device, after all have been checked: attention's for the `heads` that will be
    served, by operator (an operator that is not among them is not served), or for usual ones."""
    served = {operator: (usual,) for operator, usual in USUAL.items()} if heads is None else heads
    found = [operator for operator in CHECKS if not is_right(operator, device)]
    return found + [name for name, kinds in served.items() if not all([is_right(name, device, each) for each in kinds])]


def check_attention(device: torch.device, heads: Heads) -> Results:
    """Decode in one part and in many, and ragged prefill: plain, with all that a model may add, and quantized."""
    key_size, value_size, dtype = heads
    q, k, v = (_random(*shape, device=device).to(dtype) for shape in ((22, 8, key_size), (1024, 2, key_size), (1024, 2, value_size)))
    options = {"scale": key_size**-0.5}
    extras = {"soft_cap": 20.0, "sinks_H": _random(8, device=device), "slopes_H": _random(8, device=device).float().abs()}
    both = attention_triton.attend, attention_reference.attend
    for name, keys in (("many parts", _ragged(device)), ("one part", _ragged(device, longest=60))):
        yield f"plain, {name}", *_both(*both, q, k, v, keys, **options)
        for form in LARGEST:
            (k8, k_scales), (v8, v_scales) = quantize(k, form), quantize(v, form)
            yield f"{form}, {name}", *_both(*both, q, k8, v8, keys, **options, k_scales_NK=k_scales, v_scales_NK=v_scales)
    yield "extras", *_both(*both, q, k, v, _ragged(device, window=64), **options, **extras)


def check_latent_attention(device: torch.device, heads: Heads) -> Results:
    """The same of latents: plain, and with factors for a latent and for its rotated key."""
    size, latent_size, dtype = heads
    q, latents = _random(22, 16, size, device=device).to(dtype), _random(1024, 1, size, device=device).to(dtype)
    scale, rotated = size**-0.5, size - latent_size
    for name, keys in (("many parts", _ragged(device)), ("one part", _ragged(device, longest=60))):
        got = attention_triton.attend(q, latents, latents[:, :, :latent_size], keys, scale=scale)
        yield f"plain, {name}", got, attend_latent_reference(q, latents[:, 0], keys, latent_size=latent_size, scale=scale)
        for form in LARGEST:
            pool, scales = torch.zeros(1024, size, device=device).to(form), torch.zeros(1024, 2, device=device)
            for part, values in enumerate(latents[:, 0].split([latent_size, rotated], dim=1)):
                codes, scales[:, part] = quantize(values, form)
                pool[:, latent_size * part : latent_size + rotated * part] = codes
            k, k_scales = pool.unsqueeze(1), scales.unsqueeze(1)
            v, v_scales = k[..., :latent_size], k_scales[..., 0]
            if attention_triton.suits(q, k, v):
                got = attention_triton.attend(q, k, v, keys, scale=scale, k_scales_NK=k_scales, v_scales_NK=v_scales)
                expected = attend_latent_reference(q, pool, keys, latent_size=latent_size, scale=scale, scales_N2=scales)
                yield f"{form}, {name}", got, expected


def _ragged(device: torch.device, *, longest: int = 200, window: int | None = None) -> RaggedKeys:
    """A long row and a short one that decode, and a chunk; the narrow table of rows that cannot be long leaves decode one part."""
    width = 64 if longest <= 64 else 1024
    slots = _random(3, 1024, device=device).argsort(dim=1).to(torch.int32)[:, :width]
    return RaggedKeys(flat_spans([(0, 1, longest), (1, 20, min(80, longest)), (2, 1, 3)]), slots, window)


def check_norm(device: torch.device) -> Results:
    """With the sum before it."""
    x, y, weight = _random(5, 4096, device=device), _random(5, 4096, device=device, seed=1), _random(4096, device=device, seed=2)
    for kind, ours, theirs in (
        ("rms", norm_triton.add_rms_norm, norm_reference.add_rms_norm),
        ("layer", norm_triton.add_layer_norm, norm_reference.add_layer_norm),
    ):
        weights = (weight,) if kind == "rms" else ()
        options = {} if kind == "rms" else {"weight_D": weight, "bias_D": weight}
        for name, *pair in zip(("sum", "norm"), *_both(ours, theirs, x, y, *weights, eps=1e-5, **options), strict=True):
            yield f"{kind} {name}", *pair


def check_gated(device: torch.device) -> Results:
    """Every activation."""
    gate, up = _random(5, 3000, device=device).chunk(2, dim=1)
    for activation in gated_reference.ACTIVATIONS:
        yield activation, *_both(gated_triton.gated, gated_reference.gated, gate, up, activation=activation)


def check_rotary_store(device: torch.device, heads: Heads) -> Results:
    """What queries become, and what the pools then hold, in every form: of heads rotated whole, in part and not at all."""
    key_size, value_size, dtype = heads
    q, k, v = (_random(5, *shape, device=device).to(dtype) for shape in ((8, key_size), (2, key_size), (2, value_size)))
    slots = torch.tensor([3, 9, 0, 4, 7], device=device)
    for rotated in {key_size // 2 * 2, key_size // 4 * 2, 0}:
        angles, name = _angles(rotated, dtype, device=device) if rotated else None, f"{rotated} values rotated"
        for form in (dtype, *LARGEST):
            stored = [_stored(each.rotate_and_store, (q, k, v), angles, slots, form=form) for each in (store_triton, store_reference)]
            for part, ours, theirs in zip(("queries", "keys", "values"), *stored, strict=True):
                yield f"{form} {part}, {name}", ours, theirs


def check_latent_store(device: torch.device, heads: Heads) -> Results:
    """What queries become, and the latents and rotated keys that the pool then holds, in every form."""
    rotated, latent_size, dtype = heads
    q, latent, key = (_random(5, *shape, device=device).to(dtype) for shape in ((8, rotated), (latent_size,), (rotated,)))
    angles, slots = _angles(rotated, dtype, device=device), torch.tensor([3, 9, 0, 4, 7], device=device)
    for form in (dtype, *LARGEST):
        stored = []
        for operator in (store_triton.rotate_and_store_latent, rotate_and_store_latent_reference):
            pool = torch.zeros(10, latent_size + rotated, device=device).to(form)
            scales = torch.zeros(10, 2, device=device) if form in LARGEST else None
            queries = operator(q, latent, key, angles, slots, pool, scales_N2=scales)
            stored.append((queries, pool[slots].float() if scales is None else dequantize_parts(pool, scales, latent_size)[slots]))
        for part, ours, theirs in zip(("queries", "slots"), *stored, strict=True):
            yield f"{form} {part}", ours, theirs


def _angles(rotated: int, dtype: torch.dtype, *, device: torch.device) -> Angles:
    angles = torch.cat((_random(5, 1, rotated // 2, device=device),) * 2, dim=-1).float()
    return Angles(angles.cos().to(dtype), angles.sin().to(dtype))


def _stored(
    operator: Callable, heads: tuple[Tensor, Tensor, Tensor], angles: Angles | None, slots: Tensor, *, form: torch.dtype
) -> list[Tensor]:
    """Queries, keys and values as attention gets them from pools of a form."""
    pools = [torch.zeros(10, *x.shape[1:], device=x.device).to(form) for x in heads[1:]]
    scales = [torch.zeros(10, x.shape[1], device=x.device) for x in heads[1:]]
    if form not in LARGEST:
        return [operator(*heads, angles, slots, tuple(pools)), *(pool[slots] for pool in pools)]
    queries = operator(*heads, angles, slots, tuple(pools), tuple(scales))
    return [queries, *(dequantize(pool, factors)[slots] for pool, factors in zip(pools, scales, strict=True))]


def check_linear(device: torch.device) -> Results:
    """8 bits with a scale for each output, 4 bits in groups."""
    x, weight = _random(3, 1024, device=device), _random(96, 1024, device=device, seed=1)
    for num_bits in (8, 4):
        form = WeightOnly(num_bits)
        packed = IntWeight(*form.pack(form.codes(weight)))
        yield form.name, *_both(linear_triton.linear_weight_only, linear_reference.linear_weight_only, x, packed)


def check_linear_fp8(device: torch.device) -> Results:
    """Few rows, with the inputs in parts, and many."""
    codes, scales = linear_reference.fp8_codes(_random(160, 2048, device=device, seed=1))
    for num_rows in (3, 130):
        x = _random(num_rows, 2048, device=device)
        yield f"{num_rows} rows", *_both(triton_fp8.linear_fp8, linear_reference.linear_fp8, x, codes, scales)


def check_routing(device: torch.device) -> Results:
    """The best of all experts, and of the best groups by corrected scores."""
    logits, correction = (_random(*shape, device=device) + torch.linspace(0, 0.7, 60, device=device) for shape in ((5, 60), (60,)))  # no two alike
    for name, rule, given in (
        ("softmax", Rule(60, 4), None),
        ("sigmoid", Rule(60, 6, "sigmoid", is_normalised=True, scale=2.5, num_groups=5, top_groups=2, group_best=2), correction),
    ):
        (weights, experts), (their_weights, their_experts) = _both(routing_triton.choose, routing_reference.choose, logits, given, rule=rule)
        yield f"{name} experts", experts, their_experts
        yield f"{name} weights", weights, their_weights


def check_experts(device: torch.device) -> Results:
    """Plain, and clamped with biases and gates and ups in turns."""
    gate_up, down = _experts(device)
    plain = ExpertStack(MatrixStack(gate_up), MatrixStack(down))
    full = replace(plain, gate_up_bias_EJ=gate_up[:, :, 0].contiguous(), down_bias_ED=down[:, :, 0].contiguous(), is_interleaved=True)
    yield "plain", *_both_experts(plain, GatedProduct("gelu"))
    yield "clamped", *_both_experts(full, GatedProduct(limit=1.5, gain=1.7))


def check_coded_experts(device: torch.device) -> Results:
    """Every form of codes, those of 4 bits in groups."""
    gate_up, down = _experts(device)
    for form in (WeightOnly(8), WeightOnly(4), Fp8()):
        yield form.name, *_both_experts(ExpertStack(MatrixStack.of_codes(form, gate_up), MatrixStack.of_codes(form, down)), GatedProduct())


def _experts(device: torch.device) -> tuple[Tensor, Tensor]:
    """Gates with ups, and outputs of four experts."""
    return _random(4, 192, 256, device=device, seed=2) / 16, _random(4, 256, 96, device=device, seed=3) / 10


def _both_experts(stack: ExpertStack, combine: GatedProduct) -> tuple[Tensor, Tensor]:
    """Two experts for each token, one of them chosen by all."""
    device = stack.down.values_EOI.device
    x, weights = _random(20, 256, device=device), _random(20, 2, device=device, seed=1).abs()
    others = _random(20, 3, device=torch.device("cpu")).argsort(dim=1)[:, :1]
    experts = torch.cat((torch.full((20, 1), 3), others), dim=1).to(device)
    return _both(experts_triton.run_experts, experts_reference.run_experts, x, weights, experts, stack, combine=combine)


def check_embedding(device: torch.device) -> Results:
    """A whole table and a part of one."""
    ids, table = torch.tensor([3, 0, 7, 12], device=device), _random(8, 1500, device=device)
    yield "whole", *_both(embedding_triton.embedding, embedding_reference.embedding, ids[:3], table)
    yield "part", *_both(embedding_triton.embedding, embedding_reference.embedding, ids, table, first_id=2)


def check_token_ids(device: torch.device) -> Results:
    """Sampled ids are kept by row, and read by row."""
    sampled, rows = torch.tensor([11, -1, 13], device=device), torch.tensor([2, 0, 3], device=device)
    kept = torch.full((2, 4), 5, device=device)
    ids_triton.scatter_ids(sampled, rows, kept[0])
    ids_reference.scatter_ids(sampled, rows, kept[1])
    yield "scatter", kept[0], kept[1]
    ids = torch.tensor([-1, 9, -1], device=device)
    yield "gather", *_both(ids_triton.gather_ids, ids_reference.gather_ids, ids, rows, kept[1])


def check_sampling(device: torch.device) -> Results:
    """Every way to ask for tokens, over two parts of a row; then what changes logits."""
    logits, rows = _random(3, 2100, device=device).float(), torch.arange(3, device=device)
    asked = [[0, 2100, 1, 0, 1, 0, 0], [1.5, 2100, 0.7, 0, 1.2, 0.5, 0.1], [1, 100, 0.5, 0.1, 0.9, 0, 0]]
    known = Rows(rows * 7 + 3, torch.tensor(asked, dtype=torch.float64, device=device))
    samples, positions = rows.repeat(2), torch.arange(6, device=device)
    got, expected = _both(sampling_triton.draw, sampling_reference.draw, logits[samples], samples, positions, rows=known, needs=Needs())
    yield "greedy", got[samples == 0], expected[samples == 0]
    num_equal = (got == expected).sum()  # one may be another where the edge of top-p rounds otherwise
    yield "drawn", num_equal >= len(samples) - 1, torch.ones_like(num_equal, dtype=torch.bool)
    until = torch.tensor([[0, 0], [0, 0], [3, 0]], device=device)
    adjustments = Adjustments(rows.clamp(max=2), torch.arange(6, device=device).view(3, 2), logits[:, :2] * 99, until)
    changed, seen = [logits.clone() for _ in range(2)], [Seen(torch.ones_like(logits).int(), logits > 0) for _ in range(2)]
    for index, operator in enumerate((sampling_triton, sampling_reference)):
        operator.penalize(changed[index], rows, seen[index], rows=known)
        operator.adjust(changed[index], rows, rows, adjustments=adjustments)
        operator.count(rows, rows, seen[index])
    yield "penalized and adjusted", changed[0].clamp(min=-9), changed[1].clamp(min=-9)
    yield "counted", seen[0].output_RV, seen[1].output_RV


def _both(ours: Callable, theirs: Callable, *arguments, **options) -> tuple:
    return ours(*arguments, **options), theirs(*arguments, **options)


def _random(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    """The same numbers on every device."""
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(device, torch.bfloat16)


USUAL = {
    "attention": Heads(128, 128, torch.bfloat16),
    "latent_attention": Heads(576, 512, torch.bfloat16),
    "rotary_store": Heads(128, 128, torch.bfloat16),
    "latent_store": Heads(64, 512, torch.bfloat16),
}
"""What is checked where nobody says which heads there will be."""
CHECKS_OF_HEADS: Mapping[str, Callable[[torch.device, Heads], Results]] = {
    "attention": check_attention,
    "latent_attention": check_latent_attention,
    "rotary_store": check_rotary_store,
    "latent_store": check_latent_store,
}
CHECKS: Mapping[str, Callable[[torch.device], Results]] = {
    "norm": check_norm,
    "gated": check_gated,
    "linear": check_linear,
    "linear_fp8": check_linear_fp8,
    "routing": check_routing,
    "experts": check_experts,
    "coded_experts": check_coded_experts,
    "embedding": check_embedding,
    "token_ids": check_token_ids,
    "sampling": check_sampling,
}
