"""Compiles Triton kernels for GPUs that are not here, and prints what each takes as one line of JSON.

Run as `python -m tests.kernels.compile_ahead sm_80|sm_89|sm_90 [--all] [--share I/N]`: a process of its own, because a process that
interprets kernels cannot compile them; share I of N takes every Nth launch, so that N processes use as many processors. What is
compiled are launches over tensors without memory, of the sizes of real models; of launches that are cut alike and have the same
compile-time constants the first stands for all. With `--all` share 0 also tells which shipped configurations nothing was cut by.
"""

import argparse
import itertools
import json
import os
from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import torch

from actorllm_kernels import configurations, device
from actorllm_kernels.attention import RaggedKeys, flat_spans, triton
from actorllm_kernels.configurations import Configuration, Key
from actorllm_kernels.embedding import triton as embedding
from actorllm_kernels.experts import ExpertStack, MatrixStack
from actorllm_kernels.experts import triton as experts
from actorllm_kernels.gated import ACTIVATIONS, GatedProduct
from actorllm_kernels.gated import triton as gated
from actorllm_kernels.launch import Launch
from actorllm_kernels.linear import IntWeight, triton_expand, triton_fp8
from actorllm_kernels.linear import triton as linear
from actorllm_kernels.norm import triton as norm
from actorllm_kernels.rotary_store import Angles
from actorllm_kernels.rotary_store import triton as rotary_store
from actorllm_kernels.routing import Rule
from actorllm_kernels.routing import triton as routing
from actorllm_kernels.sampling import Adjustments, Needs, Rows, Seen
from actorllm_kernels.sampling import triton as sampling
from actorllm_kernels.token_ids import triton as token_ids

GPUS = {"sm_80": 108, "sm_89": 128, "sm_90": 132}
"""Multiprocessors, by GPU."""
meta = partial(torch.empty, device="meta")


def attention(
    query_len: int,
    heads: tuple[int, int],
    head_dim: int,
    *,
    form: torch.dtype = torch.bfloat16,
    of_bytes: torch.dtype = torch.bfloat16,
    value_dim: int | None = None,
    extras: bool = False,
    num_rows: int = 64,
) -> list[Launch]:
    """Attention of `num_rows` rows over pools of `form`, with queries of its dtype, or `of_bytes` where a value has one byte; with
    `extras`, all that a model may add."""
    num_heads, num_kv_heads = heads
    dtype = of_bytes if form.itemsize == 1 else form
    q = meta(num_rows * query_len, num_heads, head_dim, dtype=dtype)
    k, v = meta(100_000, num_kv_heads, head_dim, dtype=form), meta(100_001, num_kv_heads, head_dim, dtype=form)[1:]  # nor latents
    sizes = (num_kv_heads, 2) if value_dim else (num_kv_heads,)
    factors = None if form == dtype else meta(100_000, *sizes, dtype=torch.float32)
    pools = triton.Pools(k, k[:, :, :value_dim] if value_dim else v, factors, factors)
    table = meta(num_rows, 8192, dtype=torch.int32)
    keys = RaggedKeys(flat_spans((row, query_len, 4096) for row in range(num_rows)), table, 1024 if extras else None)
    scores = triton.Scores(0.1)
    if extras:
        scores = triton.Scores(0.1, 30.0, meta(num_heads, dtype=dtype), meta(num_heads, dtype=torch.float32))
    out = meta(len(q), num_heads, value_dim or head_dim, dtype=dtype)
    return triton.launches(q, pools, keys, scores=scores, out_THE=out)


def around() -> list[Launch]:
    """What comes between products, for 64 tokens of a model of 8192 values."""
    tokens, gate_up = partial(meta, 64, dtype=torch.bfloat16), meta(64, 2 * 28672, dtype=torch.bfloat16)
    weight = meta(8192, dtype=torch.bfloat16)
    results = tokens(8192), tokens(8192)
    norms = partial(norm.launch, tokens(8192), tokens(8192), weight_D=weight, eps=1e-5, results=results)
    return [
        norms(bias_D=None, is_rms=True),
        norms(bias_D=weight, is_rms=False),
        *(gated.launch(*gate_up.chunk(2, dim=-1), activation=name, out_TI=tokens(28672)) for name in ACTIVATIONS),
    ]


def stores(head_dim: int, form: torch.dtype = torch.bfloat16) -> list[Launch]:
    """What comes before attention, for 64 tokens: heads rotated whole, in part and not at all, and latents."""
    tokens, slots = partial(meta, 64, dtype=form if form.itemsize > 1 else torch.bfloat16), meta(64, dtype=torch.int64)
    q, k, v = tokens(80, head_dim).split([64, 8, 8], dim=1)
    pools = meta(100_000, 8, head_dim, dtype=form), meta(100_000, 8, head_dim, dtype=form)
    factors = [meta(100_000, 8, dtype=torch.float32) if form.itemsize == 1 else None for _ in "kv"]
    scales = None if factors[0] is None or factors[1] is None else (factors[0], factors[1])
    rotations = partial(rotary_store.launch, q, k, v, slots_T=slots, pools=pools, scales=scales)
    latents = meta(100_000, 576, dtype=form), None if scales is None else meta(100_000, 2, dtype=torch.float32)
    rotated = Angles(tokens(1, 64), tokens(1, 64), True)
    return [
        rotations(angles=Angles(tokens(1, head_dim), tokens(1, head_dim)), out_THD=q),
        rotations(angles=Angles(tokens(1, head_dim // 2), tokens(1, head_dim // 2), True), out_THD=q),
        rotations(angles=None, out_THD=None if scales is None else q),
        rotary_store.launch_latent(
            tokens(128, 64), tokens(512), tokens(64),
            angles=rotated, slots_T=slots, pool_NC=latents[0], scales_N2=latents[1], out_THP=tokens(128, 64),
        ),
    ]  # fmt: skip


def of_size(size: int) -> list[Launch]:
    """What has a configuration for the size of a row or a value, over 64 tokens in float32."""
    tokens = partial(meta, 64, dtype=torch.float32)
    weight, table = meta(size, dtype=torch.float32), meta(1000, size, dtype=torch.float32)
    return [
        norm.launch(tokens(size), None, weight_D=weight, bias_D=None, eps=1e-5, is_rms=True, results=(None, tokens(size))),
        gated.launch(tokens(size), tokens(size), activation="silu", out_TI=tokens(size)),
        embedding.launch(meta(64, dtype=torch.int64), table, first_id=0, out_TD=tokens(size)),
    ]


def ids() -> list[Launch]:
    """Embedding 64 tokens, and handing on their ids."""
    numbers = partial(meta, dtype=torch.int64)
    table, out = meta(128_256, 8192, dtype=torch.bfloat16), meta(64, 8192, dtype=torch.bfloat16)
    return [
        embedding.launch(numbers(64), table, first_id=0, out_TD=out),
        token_ids.gather_launch(numbers(64), numbers(64), numbers(256), out_T=numbers(64)),
        token_ids.scatter_launch(numbers(64), numbers(64), numbers(256)),
    ]


def samples(vocab_size: int) -> list[Launch]:
    """Sampling for 64 of 256 rows, with all that they may ask for."""
    numbers = partial(meta, dtype=torch.int64)
    logits, rows = meta(64, vocab_size, dtype=torch.float32), Rows(numbers(256), meta(256, 7, dtype=torch.float64))
    seen = Seen(meta(256, vocab_size, dtype=torch.int32), meta(256, vocab_size, dtype=torch.bool))
    adjustments = Adjustments(numbers(256), numbers(256, 16), meta(256, 16, dtype=torch.float32), numbers(256, 16))
    found = [
        sampling.penalize_launch(logits, numbers(64), seen, rows=rows),
        sampling.adjust_launch(logits, numbers(64), numbers(64), adjustments=adjustments),
        *sampling.launches(logits, numbers(64), numbers(64), rows=rows, needs=Needs(), ids_S=numbers(64)),
        sampling.count_launch(numbers(64), numbers(64), seen),
    ]
    return list({(each.name, each.constants.get("BY_WEIGHT")): each for each in found}.values())  # a search's passes are alike


def products(num_rows: int, *, num_bits: int, group_len: int | None, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    """A product of a model of 8192 values with weights of a few bits."""
    codes = meta(28672, 8192, dtype=torch.int8) if num_bits == 8 else meta(28672, 4096, dtype=torch.uint8)
    weight = IntWeight(codes, meta(28672, 8192 // (group_len or 8192), dtype=torch.float32))
    x, out = meta(num_rows, 8192, dtype=dtype), meta(num_rows, 28672, dtype=dtype)
    if not linear.fits_one_kernel(x, weight):
        return [triton_expand.launch(weight, meta(28672, 8192, dtype=dtype))]
    return linear.launches(x, weight, out_MN=out)


def products_fp8(num_rows: int) -> list[Launch]:
    """A product of a model of 8192 values in 8-bit floats."""
    codes, scales = meta(28672, 8192, dtype=torch.uint8), meta(28672, dtype=torch.float32)
    x, out = meta(num_rows, 8192, dtype=torch.bfloat16), meta(num_rows, 28672, dtype=torch.bfloat16)
    return triton_fp8.launches(x, codes, scales, out_MN=out)


def routes(num_experts: int, rule: Rule) -> list[Launch]:
    """Choosing experts for 64 tokens."""
    logits, correction = meta(64, num_experts, dtype=torch.float32), meta(num_experts, dtype=torch.float32)
    chosen = meta(64, rule.top_k, dtype=torch.float32), meta(64, rule.top_k, dtype=torch.int64)
    return [routing.launch(logits, correction if rule.scores == "sigmoid" else None, rule=rule, chosen=chosen)]


def mixture(
    num_tokens: int,
    sizes: tuple[int, int, int, int],
    *,
    is_full: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    codes: tuple[torch.dtype, int | None] | None = None,
) -> list[Launch]:
    """Experts of a model of `sizes` (experts, of a token, hidden size, inner size); all that a model may add with `is_full`; with
    `codes`, weights of that dtype (uint8: of two codes) in groups of so many inputs."""
    num_experts, top_k, hidden, inner = sizes
    numbers = partial(meta, dtype=dtype)
    biases = (numbers(num_experts, 2 * inner), numbers(num_experts, hidden)) if is_full else (None, None)
    shapes = (num_experts, 2 * inner, hidden), (num_experts, hidden, inner)
    matrices = [MatrixStack(numbers(*shape)) for shape in shapes]
    if codes is not None:
        form, group_len = codes
        matrices = [
            MatrixStack(
                meta(*shape[:2], shape[2] // (2 if form == torch.uint8 else 1), dtype=form),
                meta(*shape[:2], shape[2] // (group_len or shape[2]), dtype=torch.float32),
            )
            for shape in shapes
        ]
    stack = ExpertStack(*matrices, *biases, is_interleaved=is_full)
    chosen = meta(num_tokens, top_k, dtype=torch.int64)
    x, out, weights = numbers(num_tokens, hidden), numbers(num_tokens, hidden), numbers(num_tokens, top_k)
    combine = GatedProduct(limit=7.0, gain=1.702) if is_full else GatedProduct()
    return experts.launches(x, weights, chosen, stack, combine=combine, out_TD=out)


def few() -> Iterator[tuple[str, list[Launch]]]:
    """The usual shapes."""
    for query_len in (1, 512):
        yield "GQA 8:1, 128", attention(query_len, (64, 8), 128)
        yield "GQA 8:1, 128, int8", attention(query_len, (64, 8), 128, form=torch.int8)
        yield "latent 512+64", attention(query_len, (16, 1), 576, value_dim=512)
        yield "latent 512+64, int8", attention(query_len, (16, 1), 576, value_dim=512, form=torch.int8)
    yield "GQA 8:1, 64, all extras", attention(1, (64, 8), 64, extras=True)
    yield "GQA 8:1, 160", attention(512, (64, 8), 160)
    yield "GQA 8:1, 128, fp8", attention(1, (64, 8), 128, form=torch.float8_e4m3fn)
    yield "GQA 8:1, 128, all extras", attention(512, (64, 8), 128, extras=True)
    for heads, head_dim in (((64, 8), 64), ((48, 1), 96)):  # where the assembler is at its limits
        name = f"{heads[0]}:{heads[1]} heads, {head_dim}, int8 beside float16"
        yield name, attention(1, heads, head_dim, form=torch.int8, of_bytes=torch.float16)
    yield "hidden size 8192", around()
    yield "64:8 heads, 128", stores(128)
    yield "64:8 heads, 128, int8", stores(128, torch.int8)
    yield "64 tokens", ids()
    yield "64 of 128256 tokens", samples(128_256)
    for (num_bits, group_len), num_rows in itertools.product(((8, None), (4, 128)), (16, 256, 512)):
        yield f"8192 x 28672, {num_bits} bits, {num_rows} rows", products(num_rows, num_bits=num_bits, group_len=group_len)
    for num_rows in (16, 512):
        yield f"8192 x 28672, fp8, {num_rows} rows", products_fp8(num_rows)
    yield "8 of 256 experts in 8 groups", routes(256, Rule(256, 8, "sigmoid", True, 2.5, num_groups=8, top_groups=4, group_best=2))
    for num_tokens in (16, 2048):
        yield f"{num_tokens} tokens, 8 of 128 experts", mixture(num_tokens, (128, 8, 2048, 768))
    for form, group_len in ((torch.int8, None), (torch.uint8, 128)):
        name = f"16 tokens, 8 of 128 experts, {'int8' if group_len is None else 'int4'}"
        yield name, mixture(16, (128, 8, 2048, 768), codes=(form, group_len))


def every() -> Iterator[tuple[str, list[Launch]]]:
    """Every size, form and group."""
    yield "64 tokens", ids()
    for vocab_size in (32_000, 50_257, 128_256, 262_144):
        yield f"64 of {vocab_size} tokens", samples(vocab_size)
    yield "hidden size 8192", around()
    for size in (512, 1024, 2048, 4096, 8192, 12_288):
        yield f"{size} values in float32", of_size(size)
    for head_dim, form in itertools.product((64, 80, 96, 128, 256), (torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.float32)):
        yield f"64:8 heads, {head_dim}, {form}", stores(head_dim, form)
    all_rows, all_groups, dtypes = (1, 16, 32, 64, 65, 256, 512), (None, 32, 128), (torch.bfloat16, torch.float16, torch.float32)
    for num_rows, num_bits, group_len, dtype in itertools.product(all_rows, (8, 4), all_groups, dtypes):
        name = f"{num_rows} rows, {dtype}, {num_bits} bits in {group_len or 'whole'} groups"
        yield name, products(num_rows, num_bits=num_bits, group_len=group_len, dtype=dtype)
    for num_rows in (1, 64, 512):
        yield f"{num_rows} rows, fp8", products_fp8(num_rows)
    for num_experts, top_k, groups in ((8, 2, 1), (32, 4, 1), (60, 4, 1), (64, 6, 1), (128, 8, 1), (160, 6, 8), (256, 8, 8), (384, 8, 1)):
        for best, scores in ((1, "softmax"), (2, "sigmoid")):
            rule = Rule(num_experts, top_k, scores, num_groups=groups, top_groups=min(groups, 3), group_best=best)
            yield f"{top_k} of {num_experts} experts, {scores}", routes(num_experts, rule)
    for num_tokens, is_full, dtype in itertools.product((1, 512, 4096), (False, True), (torch.bfloat16, torch.float32)):
        name = f"{num_tokens} tokens, 4 of 32 experts, {dtype}{', all extras' if is_full else ''}"
        yield name, mixture(num_tokens, (32, 4, 2880, 2880), is_full=is_full, dtype=dtype)
    coded = (torch.int8, None), (torch.int8, 64), (torch.uint8, None), (torch.uint8, 32), (torch.uint8, 128), (torch.float8_e4m3fn, None)
    for num_tokens, codes, dtype in itertools.product((16, 512, 4096), coded, (torch.bfloat16, torch.float32)):
        name = f"{num_tokens} tokens, 8 of 128 experts, {codes[0]} in {codes[1] or 'whole'} groups, {dtype}"
        yield name, mixture(num_tokens, (128, 8, 2048, 768), dtype=dtype, codes=codes)
    yield from every_attention()


def every_attention() -> Iterator[tuple[str, list[Launch]]]:
    """Every head size, group, form and dtype; of decode, which must not spill, plainly and with extras, in one part and in many."""
    all_heads, sizes = ((64, 8), (48, 1), (32, 32)), (64, 72, 80, 96, 100, 112, 128, 160, 192, 256)
    floats, codes = (torch.bfloat16, torch.float16), (torch.int8, torch.float8_e4m3fn)
    forms = [*zip((*floats, torch.float32), (*floats, torch.float32), strict=True), *itertools.product(codes, floats)]
    for heads, head_dim, (form, dtype), extras in itertools.product(all_heads, sizes, forms, (False, True)):
        name = f"{heads[0]}:{heads[1]} heads, {head_dim}, {form} beside {dtype}{', all extras' if extras else ''}"
        for num_rows in (4, 2048):  # the keys of few rows are cut into parts
            rows = attention(1, heads, head_dim, form=form, of_bytes=dtype, extras=extras, num_rows=num_rows)
            yield f"{name}, {num_rows} rows", rows
        if dtype != torch.float16 and (extras or heads == (64, 8)):
            yield name, attention(512, heads, head_dim, form=form, extras=extras)
    for num_heads, (form, dtype), query_len in itertools.product((16, 128), forms, (1, 512)):
        latent = attention(query_len, (num_heads, 1), 576, form=form, of_bytes=dtype, value_dim=512)
        yield f"latent, {num_heads} heads, {form} beside {dtype}", latent
    yield "64:8 heads, 128, float16, all extras", attention(512, (64, 8), 128, form=torch.float16, extras=True)


def distinct(cases: Iterator[tuple[str, list[Launch]]]) -> Iterator[tuple[str, Launch]]:
    """The first launch of each kernel, kinds of arguments, compile-time constants and compiler's options."""
    seen = set()
    for name, launches in cases:
        for launch in launches:
            kinds = {key: value.dtype if isinstance(value, torch.Tensor) else type(value) for key, value in launch.arguments.items()}
            key = launch.name, str(kinds), str(launch.constants), str(launch.options)
            if key not in seen:
                seen.add(key)
                yield name, launch


def processor_seconds() -> float:
    """What this process and those that it waited for have taken."""
    return sum(os.times()[:4])


def main(cases: Iterator[tuple[str, list[Launch]]], gpu: str, *, share: tuple[int, int] = (0, 1), is_whole: bool = False) -> None:
    """Compile one share of the cases' kernels for one GPU."""
    limit, processors = configurations.SHARED_KIB[gpu] * 1024, GPUS[gpu]
    asked: set[Key] = set()

    def remembered(key: Key) -> Configuration:
        asked.add(key)
        return configurations.configuration(key)

    with (
        patch.object(device, "gpu", return_value=gpu),
        patch.object(device, "configuration", remembered),
        patch.object(device, "num_processors", return_value=processors),
        patch.object(triton_fp8, "gpu", return_value=gpu),
    ):
        for name, launch in itertools.islice(distinct(cases), share[0], None, share[1]):
            start, row = processor_seconds(), {"gpu": gpu, "kernel": launch.name, "case": name, "limit": limit}
            try:
                row |= vars(launch.resources(int(gpu.removeprefix("sm_"))))
            except Exception as error:  # boundary: whatever a compiler raises, the other kernels are compiled, too
                row["failure"] = repr(error)[:1000]
            print(json.dumps(row | {"seconds": processor_seconds() - start}), flush=True)
    if is_whole and share[0] == 0:
        shipped = [key for key in configurations.read(configurations.SHIPPED) if key.gpu == gpu]
        left = {*shipped} - {configurations.nearest(key, shipped) for key in asked}
        print(json.dumps({"gpu": gpu, "unused": sorted(f"{key.kernel} {dict(key.shape)}" for key in left)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="compile kernels for a GPU that need not be here")
    parser.add_argument("gpu", choices=GPUS)
    parser.add_argument("--all", action="store_true", help="every shape instead of the usual ones")
    parser.add_argument("--share", default="0/1", help="I/N: every Nth launch from the Ith on")
    given = parser.parse_args()
    index, number = map(int, given.share.split("/"))
    main(every() if given.all else few(), given.gpu, share=(index, number), is_whole=given.all)
