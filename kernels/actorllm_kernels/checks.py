"""What the Triton kernels of each operator are compared by, form by form: results of theirs beside those of the references.

Each path through the code that a launch can take is taken: few rows and many, inputs and keys in one part and in several. Decides
nothing; `self_check` does.

Legend: T tokens, H query heads, K key/value heads, D head_dim, N slots.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from actorllm_kernels.attention import RaggedKeys, flat_spans
from actorllm_kernels.attention import reference as attention_reference
from actorllm_kernels.attention import triton as attention_triton
from actorllm_kernels.backends import EXTRAS, USUAL_SIZES, Form, Heads, Sizes
from actorllm_kernels.comparison import Tolerance, tolerance
from actorllm_kernels.embedding import reference as embedding_reference
from actorllm_kernels.embedding import triton as embedding_triton
from actorllm_kernels.experts import ExpertStack, MatrixStack
from actorllm_kernels.experts import reference as experts_reference
from actorllm_kernels.experts import triton as experts_triton
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.gated import reference as gated_reference
from actorllm_kernels.gated import triton as gated_triton
from actorllm_kernels.latent_attention import attend_latent_reference, rotate_and_store_latent_reference
from actorllm_kernels.linear import reference as linear_reference
from actorllm_kernels.linear import triton as linear_triton
from actorllm_kernels.linear import triton_fp8
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

Results = Iterator[tuple[str, Tensor, Tensor]]
"""What was compared, what the kernels gave and what the reference gives."""
NUM_SLOTS = 1024
WINDOW = 50
"""Of the keys of a check; the compiled kernels are the same for any."""


@dataclass(frozen=True)
class Check:
    """How an operator is compared, and its forms (of heads usual ones); `dtype`: its tensors', if not the activations'. Where it
    `is_of_sizes` the comparison takes `sizes`, too."""

    compare: Callable[..., Results]  # of device, dtype and the kind of `Form` that it has
    forms: tuple[Form, ...]
    dtype: torch.dtype | None = None
    is_of_sizes: bool = False
    rounds_to: Callable[[Any], torch.dtype | None] = lambda _: None
    """What the kernels of a form round to themselves that is coarser than the activations' dtype, if anything."""

    def tolerance(self, dtype: torch.dtype, form: Form) -> Tolerance:
        """How close results have to be."""
        rounded = self.rounds_to(form)
        return tolerance(dtype, *(() if rounded is None else (rounded,)))

    @property
    def is_of_heads(self) -> bool:
        """Whether forms are what a model's heads make them."""
        return isinstance(self.forms[0], Heads)


def check_attention(device: torch.device, dtype: torch.dtype, heads: Heads, sizes: Sizes = USUAL_SIZES) -> Results:
    """Ragged prefill, and decode in each number of parts that up to so many rows are cut into, of such heads, with just the
    extras that will be there."""
    num_heads, num_kv_heads, key_size, value_size, quantized, extras = heads
    q = _random(max(22, sizes.rows), num_heads, key_size, device=device).to(dtype)
    pools = [_random(NUM_SLOTS, num_kv_heads, size, device=device, seed=size).to(dtype) for size in (key_size, value_size)]
    known: dict[str, tuple[str, Any]] = {
        "soft cap": ("soft_cap", 20.0),
        "sinks": ("sinks_H", _random(num_heads, device=device).to(dtype)),
        "slopes": ("slopes_H", _random(num_heads, device=device).abs()),
    }
    options: dict[str, Any] = {"scale": key_size**-0.5, **dict(known[name] for name in extras - {"window"})}
    if quantized:
        (k, k_scales), (v, v_scales) = (quantize(pool, quantized) for pool in pools)
        pools, options = [k, v], options | {"k_scales_NK": k_scales, "v_scales_NK": v_scales}
    for name, keys in _batches(q, attention_triton.Pools(*pools), sizes, is_windowed="window" in extras):
        yield name, *_both(attention_triton.attend, attention_reference.attend, q[: _num_tokens(keys)], *pools, keys, **options)


def check_latent_attention(device: torch.device, dtype: torch.dtype, heads: Heads, sizes: Sizes = USUAL_SIZES) -> Results:
    """The same of latents, which have factors for a latent and for its rotated key where they are in one byte."""
    num_heads, _, size, latent_size, quantized, _ = heads
    q, latents = (_random(max(22, sizes.rows), num_heads, size, device=device), _random(NUM_SLOTS, size, device=device, seed=1))
    q, latents = q.to(dtype), latents.to(dtype)
    options: dict[str, Any] = {}
    pool, scales = latents, None
    if quantized:
        pool, scales = torch.zeros(NUM_SLOTS, size, device=device).to(quantized), torch.zeros(NUM_SLOTS, 2, device=device)
        for part, columns in enumerate((slice(latent_size), slice(latent_size, None))):
            pool[:, columns], scales[:, part] = quantize(latents[:, columns], quantized)
        options = {"k_scales_NK": scales.unsqueeze(1), "v_scales_NK": scales[:, :1]}
    k = pool.unsqueeze(1)
    v, scale = k[..., :latent_size], size**-0.5
    if not attention_triton.suits(q, k, v):
        return
    for name, keys in _batches(q, attention_triton.Pools(k, v), sizes, is_windowed=False):
        given = q[: _num_tokens(keys)]
        expected = attend_latent_reference(given, pool, keys, latent_size=latent_size, scale=scale, scales_N2=scales)
        yield name, attention_triton.attend(given, k, v, keys, scale=scale, **options), expected


def _batches(
    q_THD: Tensor, pools: attention_triton.Pools, sizes: Sizes, *, is_windowed: bool
) -> Iterator[tuple[str, RaggedKeys]]:
    """A chunk beside rows that decode; and for each number of parts that keys are ever cut into, the fewest decoding rows for
    which they are. All have few keys, in a table of the served shape."""
    num_keys = min(200, sizes.context)
    table = torch.zeros(sizes.rows, sizes.context, dtype=torch.int32, device=q_THD.device)
    table[:, :num_keys] = _random(sizes.rows, NUM_SLOTS, device=q_THD.device).argsort(dim=1)[:, :num_keys]
    rows = [(0, 1, num_keys), (1, min(20, num_keys), min(80, num_keys)), (2, 1, min(3, num_keys))]
    spans = flat_spans((row % sizes.rows, query_len, seq_len) for row, query_len, seq_len in rows)
    yield "ragged rows", RaggedKeys(spans, table, WINDOW if is_windowed else None)
    known = set()
    for window, num_rows in itertools.product(sizes.windows if is_windowed else [None], range(1, sizes.rows + 1)):
        most_keys = min(sizes.context, window or sizes.context)
        num_parts = attention_triton.parts_of(q_THD, pools, num_rows=num_rows, most_keys=most_keys)
        if num_parts not in known:
            known.add(num_parts)
            spans = flat_spans((row, 1, num_keys // (row + 1) or 1) for row in range(num_rows))
            yield f"{num_parts} parts", RaggedKeys(spans, table, window)


def _num_tokens(keys: RaggedKeys) -> int:
    return sum(span.query_len for span in keys.spans)


def check_rotary_store(device: torch.device, dtype: torch.dtype, heads: Heads) -> Results:
    """What queries become, and what the pools then hold: of heads rotated whole, in part and not at all."""
    num_heads, num_kv_heads, key_size, value_size, quantized, _ = heads
    shapes = (num_heads, key_size), (num_kv_heads, key_size), (num_kv_heads, value_size)
    given = tuple(_random(5, *shape, device=device, seed=seed).to(dtype) for seed, shape in enumerate(shapes))
    slots = torch.tensor([3, 9, 0, 4, 7], device=device)
    whole, part = key_size // 2 * 2, key_size // 4 * 2
    for rotated, is_interleaved in {(whole, False), (whole, True), (part, False), (0, False)}:
        angles = _angles(rotated, dtype, device=device, is_interleaved=is_interleaved) if rotated else None
        name = f"{rotated} values rotated" + (" in pairs of neighbours" if is_interleaved else "")
        both = store_triton.rotate_and_store, store_reference.rotate_and_store
        stored = [_stored(each, given, angles, slots, form=quantized or dtype) for each in both]
        for part_name, ours, theirs in zip(("queries", "keys", "values"), *stored, strict=True):
            yield f"{part_name}, {name}", ours, theirs


def check_latent_store(device: torch.device, dtype: torch.dtype, heads: Heads) -> Results:
    """What queries become, and the latents and rotated keys that the pool then holds."""
    num_heads, _, rotated, latent_size, quantized, _ = heads
    q, latent, key = (_random(5, *shape, device=device).to(dtype) for shape in ((num_heads, rotated), (latent_size,), (rotated,)))
    slots = torch.tensor([3, 9, 0, 4, 7], device=device)
    for is_interleaved in (False, True):
        angles, stored = _angles(rotated, dtype, device=device, is_interleaved=is_interleaved), []
        for operator in (store_triton.rotate_and_store_latent, rotate_and_store_latent_reference):
            pool = torch.zeros(10, latent_size + rotated, device=device).to(quantized or dtype)
            scales = torch.zeros(10, 2, device=device) if quantized else None
            queries = operator(q, latent, key, angles, slots, pool, scales_N2=scales)
            latents = pool.float() if scales is None else dequantize_parts(pool, scales, latent_size)
            stored.append((queries, latents[slots]))
        for part, ours, theirs in zip(("queries", "slots"), *stored, strict=True):
            yield part + (", pairs of neighbours" if is_interleaved else ""), ours, theirs


def _angles(rotated: int, dtype: torch.dtype, *, device: torch.device, is_interleaved: bool) -> Angles:
    angles = _random(5, 1, rotated // 2, device=device)
    angles = angles.repeat_interleave(2, dim=-1) if is_interleaved else torch.cat((angles, angles), dim=-1)
    return Angles(angles.cos().to(dtype), angles.sin().to(dtype), is_interleaved)


def _stored(
    operator: Callable, heads: tuple[Tensor, ...], angles: Angles | None, slots: Tensor, *, form: torch.dtype
) -> list[Tensor]:
    """Queries, keys and values as attention gets them from pools of a form."""
    pools = [torch.zeros(10, *x.shape[1:], device=x.device).to(form) for x in heads[1:]]
    scales = [torch.zeros(10, x.shape[1], device=x.device) for x in heads[1:]]
    if form not in LARGEST:
        return [operator(*heads, angles, slots, tuple(pools)), *(pool[slots] for pool in pools)]
    queries = operator(*heads, angles, slots, tuple(pools), tuple(scales))
    return [queries, *(dequantize(pool, factors)[slots] for pool, factors in zip(pools, scales, strict=True))]


def check_norm(device: torch.device, dtype: torch.dtype, form: str, sizes: Sizes = USUAL_SIZES) -> Results:
    """Of each size, alone and with the sum before it."""
    for size in sorted(sizes.norms):
        yield from _of_norms(device, dtype, form, size)


def _of_norms(device: torch.device, dtype: torch.dtype, form: str, size: int) -> Results:
    shapes = (5, size), (5, size), (size,)
    x, y, weight = (_random(*shape, device=device, seed=seed).to(dtype) for seed, shape in enumerate(shapes))
    weights = (weight,) if form == "rms" else ()
    options = {"eps": 1e-5} if form == "rms" else {"weight_D": weight, "bias_D": weight, "eps": 1e-5}
    norms = (getattr(each, f"{form}_norm") for each in (norm_triton, norm_reference))
    yield f"norm of {size}", *_both(*norms, x, *weights, **options)
    both = _both(*(getattr(each, f"add_{form}_norm") for each in (norm_triton, norm_reference)), x, y, *weights, **options)
    for name, *pair in zip(("sum", "norm of the sum"), *both, strict=True):
        yield name, *pair


def check_gated(device: torch.device, dtype: torch.dtype, form: str) -> Results:
    """Two parts of a row, the second not whole; aligned as rows of models are."""
    gate, up = _random(5, 3008, device=device).to(dtype).chunk(2, dim=1)
    yield "product", *_both(gated_triton.gated, gated_reference.gated, gate, up, activation=form)


def check_linear(device: torch.device, dtype: torch.dtype, form: str) -> Results:
    """One row, few, tiles of every height, more than one tile, and more than one kernel takes; inputs in parts and not."""
    sizes = (1, 1024), (5, 1024), (20, 256), (60, 256), (130, 256), (linear_triton.MOST_ROWS + 1, 256)
    for num_rows, num_inputs in sizes[:-1] if form == "fp8" else sizes:
        x = _random(num_rows, num_inputs, device=device).to(dtype)
        codes, scales = codes_of(form, _random(96, num_inputs, device=device, seed=1))
        if form == "fp8":
            both = triton_fp8.linear_fp8, linear_reference.linear_fp8
            yield f"{num_rows} rows", *_both(*both, x, codes.view(torch.uint8), scales[:, 0])
        else:
            both = linear_triton.linear_weight_only, linear_reference.linear_weight_only
            yield f"{num_rows} rows", *_both(*both, x, linear_reference.IntWeight(codes, scales))


def codes_of(form: str, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales [O, G] of a form of integers or 8-bit floats, as kernels read them."""
    num_outputs, num_inputs = weight_OI.shape
    if form == "fp8":
        codes, scales = linear_reference.fp8_codes(weight_OI)
        return codes.view(torch.float8_e4m3fn), scales.unsqueeze(1)
    group_len = num_inputs // 4 if form.endswith("in groups") else num_inputs
    if form.startswith("int8"):
        codes, scales = linear_reference.int8_codes(weight_OI.view(-1, group_len))
    else:
        codes, scales = linear_reference.int4_codes(weight_OI, group_len)
    codes, scales = codes.view(num_outputs, num_inputs), scales.view(num_outputs, -1)
    weight = linear_reference.pack_by_output(codes, scales, num_bits=int(form[3]))
    return weight.codes_OI, weight.scales_OG


def check_routing(device: torch.device, dtype: torch.dtype, form: str) -> Results:
    """With what is added for choosing, and without."""
    scores, _, groups = form.partition(" ")
    in_groups = {"num_groups": 5, "top_groups": 2, "group_best": 2} if groups else {}
    rule = Rule(60, 6, "sigmoid" if scores == "sigmoid" else "softmax", is_normalised=True, scale=2.5, **in_groups)
    steps = torch.linspace(0, 0.7, 60, device=device)  # no two are alike
    logits, correction = (_random(*shape, device=device).to(dtype) + steps.to(dtype) for shape in ((5, 60), (60,)))
    for name, given in (("plain", None), ("corrected", correction.float())):
        ours, theirs = _both(routing_triton.choose, routing_reference.choose, logits, given, rule=rule)
        yield f"{name} weights", ours[0], theirs[0]
        yield f"{name} experts", ours[1], theirs[1]


def check_experts(device: torch.device, dtype: torch.dtype, form: str) -> Results:
    """Few tokens and more, two experts each, one of which all choose; gates beside ups, or in turns with biases and limits."""
    gate_up, down = _random(4, 192, 256, device=device, seed=2) / 16, _random(4, 256, 96, device=device, seed=3) / 10
    stack = ExpertStack(stacked(form, gate_up.to(dtype)), stacked(form, down.to(dtype)))
    biases = {"gate_up_bias_EJ": gate_up[:, :, 0].to(dtype).contiguous(), "down_bias_ED": down[:, :, 0].to(dtype).contiguous()}
    full = replace(stack, **biases, is_interleaved=True)
    kinds = ("plain", stack, GatedProduct("gelu")), ("clamped", full, GatedProduct(limit=1.5, gain=1.7))
    for num_tokens in (3, 70):
        x, weights = (_random(num_tokens, size, device=device, seed=size).to(dtype) for size in (256, 2))
        others = torch.arange(num_tokens, device=device) % 3
        experts = torch.stack((torch.full_like(others, 3), others), dim=1)
        for name, each, combine in kinds:
            both = experts_triton.run_experts, experts_reference.run_experts
            yield f"{name}, {num_tokens} tokens", *_both(*both, x, weights, experts, each, combine=combine)


def stacked(form: str, weights_EOI: Tensor) -> MatrixStack:
    """Matrices of all experts as values, or as codes of a form."""
    if form == "values":
        return MatrixStack(weights_EOI)
    codes, scales = zip(*(codes_of(form, weight_OI) for weight_OI in weights_EOI), strict=True)
    as_bytes = torch.stack([each.view(torch.uint8) for each in codes])  # 8-bit floats cannot be stacked everywhere
    return MatrixStack(as_bytes.view(codes[0].dtype), torch.stack(scales))


def check_embedding(device: torch.device, dtype: torch.dtype, form: str) -> Results:
    """A whole table and a part of one."""
    ids, table = torch.tensor([3, 0, 7, 12], device=device), _random(8, 1504, device=device).to(dtype)
    yield "whole", *_both(embedding_triton.embedding, embedding_reference.embedding, ids[:3], table)
    yield "part", *_both(embedding_triton.embedding, embedding_reference.embedding, ids, table, first_id=2)


def check_token_ids(device: torch.device, dtype: torch.dtype, form: str) -> Results:
    """Sampled ids are kept by row, or read by row."""
    sampled, rows = torch.tensor([11, -1, 13], device=device, dtype=dtype), torch.tensor([2, 0, 3], device=device)
    kept = torch.arange(8, device=device, dtype=dtype).view(2, 4) % 4
    if form == "gather":
        yield form, *_both(ids_triton.gather_ids, ids_reference.gather_ids, sampled, rows, kept[0])
    else:
        ids_triton.scatter_ids(sampled, rows, kept[0])
        ids_reference.scatter_ids(sampled, rows, kept[1])
        yield form, kept[0], kept[1]


def check_sampling(device: torch.device, dtype: torch.dtype, form: str, sizes: Sizes = USUAL_SIZES) -> Results:
    """Every way to ask for tokens, of the usual vocabulary over two parts of a row; or what changes logits."""
    size = sizes.vocab_size
    logits, rows = _random(3, size, device=device).to(dtype), torch.arange(3, device=device)
    asked = [[0, size, 1, 0, 1, 0, 0], [1.5, size, 0.7, 0, 1.2, 0.5, 0.1], [1, min(100, size), 0.5, 0.1, 0.9, 0, 0]]
    known = Rows(rows * 7 + 3, torch.tensor(asked, dtype=torch.float64, device=device))
    if form in ("greedy", "draw"):
        samples, positions, needs = rows.repeat(2), torch.arange(6, device=device), Needs(is_random=form == "draw")
        both = sampling_triton.draw, sampling_reference.draw
        got, expected = _both(*both, logits[samples], samples, positions, rows=known, needs=needs)
        is_greedy = (samples == 0) | (form == "greedy")
        yield "greedy", got[is_greedy], expected[is_greedy]
        num_equal = (got == expected).sum()  # one may be another where the edge of top-p rounds otherwise
        yield "drawn", num_equal >= len(samples) - 1, torch.ones_like(num_equal, dtype=torch.bool)
        return
    until = torch.zeros(3, 16, dtype=torch.int64, device=device)
    until[2, 0] = 3
    ids = (rows.unsqueeze(1) * 2 + torch.arange(16, device=device)) % size
    adjustments = Adjustments(rows.clamp(max=2), ids, _random(3, 16, device=device) * 99, until)
    changed = []
    for operator in (sampling_triton, sampling_reference):
        changed.append(logits.clone())
        if form == "penalize":
            operator.penalize(changed[-1], rows, Seen(torch.ones_like(logits).int(), logits > 0), rows=known)
        else:
            operator.adjust(changed[-1], rows, rows, adjustments=adjustments)
    yield form, changed[0].clamp(min=-9), changed[1].clamp(min=-9)


def check_counting(device: torch.device, dtype: torch.dtype, form: str, sizes: Sizes = USUAL_SIZES) -> Results:
    """Sampled ids, of which one is of no token."""
    ids, rows = torch.tensor([3, -1, 0], device=device, dtype=dtype), torch.tensor([2, 0, 3], device=device)
    ones = torch.ones(4, sizes.vocab_size, dtype=torch.int32, device=device)
    seen = [Seen(ones.clone(), torch.zeros_like(ones, dtype=torch.bool)) for _ in range(2)]
    sampling_triton.count(ids, rows, seen[0])
    sampling_reference.count(ids, rows, seen[1])
    yield "counts", seen[0].output_RV, seen[1].output_RV


def _both(ours: Callable, theirs: Callable, *arguments, **options) -> tuple:
    return ours(*arguments, **options), theirs(*arguments, **options)


def _random(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    """float32; the same numbers on every device."""
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(device)


def _in_every_pool(heads: Heads) -> tuple[Heads, ...]:
    return heads, *(heads._replace(quantized=form) for form in LARGEST)


def _codes_of_pools(heads: Heads) -> torch.dtype | None:
    return heads.quantized


def _sums_of_products(form: str) -> torch.dtype | None:
    """Units for products of 8-bit floats add up to 128 of them in some 14 bits, which leaves about 3e-3 of a sum."""
    return torch.bfloat16 if form == "fp8" else None


WEIGHTS = ("int8", "int8 in groups", "int4", "int4 in groups", "fp8")
USUAL = Heads(8, 2, 128, 128)
CHECKS: Mapping[str, Check] = {
    "attention": Check(check_attention, (*_in_every_pool(USUAL), USUAL._replace(extras=EXTRAS)), is_of_sizes=True),
    "latent_attention": Check(check_latent_attention, _in_every_pool(Heads(16, 1, 576, 512)), is_of_sizes=True),
    "rotary_store": Check(check_rotary_store, _in_every_pool(USUAL), rounds_to=_codes_of_pools),
    "latent_store": Check(check_latent_store, _in_every_pool(Heads(16, 1, 64, 512)), rounds_to=_codes_of_pools),
    "norm": Check(check_norm, ("rms", "layer"), is_of_sizes=True),
    "gated": Check(check_gated, tuple(gated_reference.ACTIVATIONS)),
    "linear": Check(check_linear, WEIGHTS, rounds_to=_sums_of_products),
    "routing": Check(check_routing, ("softmax", "softmax in groups", "sigmoid", "sigmoid in groups"), torch.float32),
    "experts": Check(check_experts, ("values", *WEIGHTS)),
    "embedding": Check(check_embedding, ("rows",)),
    "token_ids": Check(check_token_ids, ("gather", "scatter"), torch.int64),
    "sampling": Check(check_sampling, ("greedy", "draw", "penalize", "adjust"), torch.float32, is_of_sizes=True),
    "counting": Check(check_counting, ("tokens",), torch.int64, is_of_sizes=True),
}
