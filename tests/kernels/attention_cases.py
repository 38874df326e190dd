"""Batches for the kernels of attention: every head size with every form, variant and kind of batch, or every pair of these."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch

from actorllm_kernels.attention import reference
from actorllm_kernels.quantize import LARGEST, dequantize_parts, quantize
from tests.kernels.ragged_pool import Pool

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LATENT = 576
HEAD_DIMS = (64, 80, 96, 128, 256, LATENT)
FORMS = (torch.float16, torch.bfloat16, torch.float32, *LARGEST)
"""Of pools; queries of those of one byte a value are in float16 or bfloat16."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "causal": (),
    "window": ("window",),
    "slopes": ("slopes_H",),
    "soft cap": ("soft_cap",),
    "sinks": ("sinks_H",),
    "all": ("window", "slopes_H", "soft_cap", "sinks_H"),
}
"""What scores are made with beside products."""
KINDS = ("one token", "decode", "prefill", "repeated slots", "empty rows")
"""Of batches: rows of one query over few keys, or over up to hundreds; chunks and prompts beside rows that decode; rows that begin with
the same slots; rows without queries between others. Slots are shuffled in all."""
GROUPS, LATENT_GROUPS = (1, 3, 4, 8, 17), (16, 16, 16, 48, 128)
"""Query heads of one key/value head."""


class Combination(NamedTuple):
    """One of each."""

    head_dim: int
    form: torch.dtype
    variant: str
    kind: str


COMBINATIONS = [Combination(*each) for each in itertools.product(HEAD_DIMS, FORMS, VARIANTS, KINDS)]


def pairs_of(combination: Combination) -> set[tuple[tuple[int, Any], ...]]:
    """Every two of its parts, with their places."""
    return set(itertools.combinations(enumerate(combination), 2))


def pairwise(combinations: Sequence[Combination]) -> list[Combination]:
    """Few of them that have every pair which any of them has: each time one of those with the most pairs that are still missing."""
    left = random.Random(0).sample(combinations, len(combinations))
    missing, chosen = set().union(*map(pairs_of, left)), []
    while missing:
        chosen.append(max(left, key=lambda each: len(pairs_of(each) & missing)))
        missing -= pairs_of(chosen[-1])
    return chosen


@dataclass
class Case:
    """A batch, and what its attention is asked with."""

    pool: Pool
    dtype: torch.dtype
    form: torch.dtype
    value_dim: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    is_fused: bool = False
    """Whether queries are the beginning of rows that go on with keys and values."""

    def results(self, triton: ModuleType) -> tuple[torch.Tensor, torch.Tensor]:
        """What the kernels and what the reference in float32 make of the same stored numbers."""
        options = dict(self.options)
        keys = self.pool.keys(options.pop("window", None), DEVICE)
        q = torch.cat([q for q, _, _ in self.pool.rows]).to(DEVICE, self.dtype)
        stored, exact = self.stored()
        options = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
        given = torch.cat((q, torch.full_like(q, torch.nan)), dim=1)[:, : q.shape[1]] if self.is_fused else q
        got = triton.attend(given, keys=keys, **stored, **options)
        assert got.dtype == self.dtype
        return got.float(), reference.attend(q.float(), keys=keys, **exact, **options)

    def stored(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The pools as the kernels and as the reference get them: quantized ones alike, others exactly in float32."""
        k, v = (pool.to(DEVICE) for pool in (self.pool.k, self.pool.v))
        if self.form not in LARGEST:
            k, v = k.to(self.form), v.to(self.form)
            plain = {"k_NKD": k, "v_NKE": self.values(k, v)}
            return plain, {"k_NKD": k.float(), "v_NKD": self.values(k, v).float()}
        if self.value_dim:
            return self.stored_latents(k, self.value_dim)
        (k, k_scales), (v, v_scales) = quantize(k, self.form), quantize(v, self.form)
        scales = {"k_scales_NK": k_scales, "v_scales_NK": v_scales}
        return {"k_NKD": k, "v_NKE": v, **scales}, {"k_NKD": k, "v_NKD": v, **scales}

    def stored_latents(self, latents: torch.Tensor, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """A latent and a rotated key of another order of size, with a factor each."""
        parts = [quantize(part, self.form) for part in (latents[:, :, :size], latents[:, :, size:] * 8)]
        k = torch.cat([values.view(torch.uint8) for values, _ in parts], dim=-1).view(self.form)
        scales = torch.stack([scales for _, scales in parts], dim=-1)
        exact = dequantize_parts(k, scales, size)
        stored = {"k_NKD": k, "v_NKE": k[:, :, :size], "k_scales_NK": scales, "v_scales_NK": scales[:, :, 0]}
        return stored, {"k_NKD": exact, "v_NKD": exact[:, :, :size]}

    def values(self, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """With latents the values are the beginning of the keys."""
        return k[:, :, : self.value_dim] if self.value_dim else v


def draw(combination: Combination, seed: int) -> Case:
    """A random batch of a combination."""
    head_dim, form, variant, kind = combination
    rng, is_latent = random.Random(seed), head_dim == LATENT
    num_kv_heads = 1 if is_latent else rng.choice((1, 2))
    num_heads = num_kv_heads * (rng.choice(LATENT_GROUPS) if is_latent else rng.choice(GROUPS[: 5 if num_kv_heads == 1 else 3]))
    pool = Pool(rows_of(kind, rng), num_heads, num_kv_heads, seed=seed, head_dim=head_dim)
    if kind == "repeated slots":
        pool.share_prefix(rng.choice((5, 20, 64)))
    given = {
        "window": rng.choice((1, 7, 64)), "soft_cap": rng.choice((0.5, 20.0)),
        "slopes_H": torch.linspace(0, 1, num_heads), "sinks_H": torch.linspace(-2, 3, num_heads),
    }  # fmt: skip
    options = {"scale": head_dim**-0.5, **{name: given[name] for name in VARIANTS[variant]}}
    dtype = form if form.itemsize > 1 else rng.choice((torch.float16, torch.bfloat16))
    return Case(pool, dtype, form, 512 if is_latent else None, options, is_fused=rng.random() < 0.5)


def rows_of(kind: str, rng: random.Random) -> list[tuple[int, int]]:
    """The queries and the length of each row."""
    if kind == "one token":
        return [(1, rng.randint(1, 40)) for _ in range(rng.randint(1, 3))]
    if kind == "decode":
        return [(1, rng.randint(1, 70)), (1, rng.randint(100, 400)), (1, rng.randint(1, 300))]
    chunk, prompt = (rng.randint(2, 40), rng.randint(40, 150)), (length := rng.randint(1, 50), length)
    mixed = [chunk, (1, rng.randint(1, 90)), prompt]
    empty = [(0, rng.randint(1, 9)) for _ in range(2)] if kind == "empty rows" else []
    rows = rng.sample(mixed, 2) + empty
    return rng.sample(rows, len(rows)) if kind != "prefill" else mixed
