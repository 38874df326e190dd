"""What is tuned: every kernel that has configurations, over the sizes of usual models; `candidates` has the ways to cut it."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from actorllm_kernels import device as devices
from actorllm_kernels.configurations import Configuration, Key
from actorllm_kernels.linear import Form, WeightOnly
from gpu_kernels.around import embedding_problem, gated_problem, norm_problem, store_problem
from gpu_kernels.attention import attention_problem
from gpu_kernels.problem import BF16, DEVICE, REHEARSAL, Problem
from gpu_kernels.products import expand_problem, experts_problem, fp8_problem, weight_only_problem
from gpu_kernels.sampling import ASKED, draw_problem


@dataclass
class Tuned:
    """A kernel's shape, and what makes the problem that is timed for one way to cut it."""

    key: Key
    make: Callable[[Configuration], Problem]


def tuned(kernel: str, shape: Mapping[str, int], make: Callable[..., Problem]) -> Tuned:
    return Tuned(devices.key_of(kernel, shape, DEVICE), lambda chosen: make(chosen=chosen))


def left_to_tune(cases: Iterable[Tuned], *, known: Collection[Key]) -> Iterator[Tuned]:
    """Those that are not `known` on this GPU with this Triton: one of each kernel, then another one of each, so that none waits for
    all that another one has."""
    by_kernel: dict[str, list[Tuned]] = {}
    for case in cases:
        if case.key not in known:
            by_kernel.setdefault(case.key.kernel, []).append(case)
    for each in itertools.zip_longest(*by_kernel.values()):
        yield from (case for case in each if case is not None)


def in_turn(cases: Iterable[Tuned], *, note: Path) -> Iterator[Tuned]:
    """The cases, last those at which an earlier process was lost: the file `note` has their keys, and the one of the case at hand."""
    lost = note.read_text().splitlines() if note.exists() else []
    places = {name: place for place, name in enumerate(lost, 1)}
    for case in sorted(cases, key=lambda case: places.get(repr(case.key), 0)):
        others = [name for name in lost if name != repr(case.key)]
        lost = [*others, repr(case.key)]
        note.write_text("\n".join(lost))
        yield case
        lost = others
        note.write_text("\n".join(lost))


HEADS = ((128, None), (64, None), (96, None), (80, None), (256, None), (576, 512))
"""The size of a head, and where values are the beginning of keys, theirs; the usual ones first."""


def tuned_cases() -> Iterator[Tuned]:
    yield from tuned_attention()
    yield from tuned_products()
    yield from tuned_experts()
    yield from tuned_around()
    rows, vocab_sizes = (1, (300, 600)) if REHEARSAL else (64, (32_768, 131_072))
    for vocab_size in vocab_sizes:
        make = partial(draw_problem, rows, vocab_size, ASKED["top-k 50 and top-p 0.9"])
        yield tuned("sampling", {"vocabulary": vocab_size}, make)


def tuned_around() -> Iterator[Tuned]:
    rows, sizes = (3, (64,)) if REHEARSAL else (16384, (1024, 4096, 8192))
    for size in sizes:
        yield tuned("norm", {"size": size}, partial(norm_problem, rows, size, is_rms=True))
    shape, size = {"bytes": BF16.itemsize}, 2 * sizes[-1]
    yield tuned("gated", shape, partial(gated_problem, rows, size, "silu"))
    yield tuned("embedding", shape, partial(embedding_problem, rows, size, 2 * rows if REHEARSAL else 128_256))
    for form in (BF16, torch.int8):
        yield tuned("rotary_store", {"bytes": form.itemsize}, partial(store_problem, rows, form))


def tuned_attention() -> Iterator[Tuned]:
    rows, context = (1, 40) if REHEARSAL else (64, 4096)
    decode, prefill = [(1, context)] * rows, [(context, context)] * min(rows, 4)
    for (head_dim, value_dim), form in itertools.product(HEADS, (BF16, torch.int8)):
        heads = ((64, 8), (32, 8)) if value_dim is None else ((128, 1), (16, 1))
        for kernel, lens, (num_heads, num_kv_heads) in zip(("attend_decode", "attend_prefill"), (decode, prefill), heads, strict=True):
            shape = {"bytes": form.itemsize, "group": num_heads // num_kv_heads, "head_dim": head_dim}
            make = partial(attention_problem, lens, (num_heads, num_kv_heads), head_dim, form=form, value_dim=value_dim)
            yield tuned(kernel, shape, make)


def tuned_products() -> Iterator[Tuned]:
    sizes = (96, 128) if REHEARSAL else (14336, 4096)
    for num_bits in (8, 4):
        shape = {"bits": num_bits, "bytes": BF16.itemsize}
        for num_rows in (16, 32, 64, 128):
            make = partial(weight_only_problem, num_rows, sizes, num_bits=num_bits)
            yield tuned("linear_weight_only", {**shape, "rows": num_rows}, make)
        yield tuned("expand", shape, partial(expand_problem, sizes, num_bits=num_bits))
    for num_rows in (16, 64, 128):
        yield tuned("linear_fp8", {"rows": num_rows}, partial(fp8_problem, num_rows, sizes))


def tuned_experts() -> Iterator[Tuned]:
    """Gates and ups first, then outputs; the other product stays as it is cut when its turn comes."""
    num_experts, top_k, *_ = sizes = (8, 2, 64, 32) if REHEARSAL else (128, 8, 2048, 768)
    for form, rows in itertools.product((None, WeightOnly(8), WeightOnly(4)), (16, 64, 128)):
        shape = {"bits": 16 if form is None else form.num_bits, "bytes": BF16.itemsize, "rows": rows}
        num_tokens = rows * num_experts // top_k
        for index, kernel in enumerate(("experts_gate_up", "experts_down")):

            def make(
                chosen: Configuration, index: int = index, shape: dict = shape, num_tokens: int = num_tokens, form: Form | None = form
            ) -> Problem:
                cut = [devices.chosen_for(name, shape, DEVICE) for name in ("experts_gate_up", "experts_down")]
                cut[index] = chosen
                return experts_problem(num_tokens, sizes, form=form, cut=(cut[0], cut[1]))

            yield tuned(kernel, shape, make)
