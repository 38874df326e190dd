"""What rounding of the weights, or of keys and values, costs: `python tests/benchmarks/weights_quality.py MODEL [--rows 6] [--tokens 256]`.

MODEL is a folder; without one nothing is done. Text is drawn from the model itself in float32, so every position is a fair one of its own distribution. For each
form of the weights, and for an int8 cache beside float32 weights: how often its most likely next token is that of float32, and the
Kullback-Leibler divergence of float32's distribution from its own, in nats, on average over the positions. int4 keeps embeddings and
heads in int8, as it is served. Exits with 1 if a form misses what is asked.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from actorllm.execution.model_plan import plan_model
from actorllm.layers.shard import Shard
from actorllm.models.contract import CausalLM
from actorllm.models.loading import load_weights
from actorllm.settings import EngineSettings, ModelSettings
from actorllm.testing.tiny import TinyCache, logits_of
from actorllm.weights.checkpoint import Checkpoint
from actorllm.weights.compact import CompactFormat
from actorllm_kernels.linear import Bf16, Form, Int4, Int8

FORMS: dict[str, tuple[Form, Form]] = {
    "bfloat16": (Bf16(), Bf16()),
    "int8": (Int8(), Int8()),
    "int4 by 32": (Int4(32), Int8()),
    "int4 by 128": (Int4(128), Int8()),
}


ASKED: dict[str, tuple[float, float]] = {"int8": (0.99, 0.002), "int4 by 32": (0.95, 0.03), "int8 cache": (0.0, 0.001)}
"""At least this share of equal top tokens, and less than this divergence in nats."""


def load(folder: Path, forms: tuple[Form, Form] | None = None) -> CausalLM:
    plan = plan_model(folder, EngineSettings(model=ModelSettings(path=str(folder), dtype="float32")))
    storage = plan.storage if forms is None else CompactFormat(plan.storage, forms[0], table_form=forms[1])
    model = plan.build(Shard())
    with Checkpoint.open(folder, storage=storage) as checkpoint:
        load_weights(model, checkpoint)
    return model


def draw(model: CausalLM, *, num_rows: int, num_tokens: int, first_id: int) -> list[list[int]]:
    """Rows of text, each begun by `first_id`."""
    generator = torch.Generator().manual_seed(1)
    cache = TinyCache(model.cache_groups, num_rows=num_rows, context=num_tokens)
    rows = [[first_id] for _ in range(num_rows)]
    while len(rows[0]) < num_tokens:
        logits = logits_of(model, cache, [(row, [ids[-1]]) for row, ids in enumerate(rows)])
        for ids, shares in zip(rows, logits.softmax(dim=-1), strict=True):
            ids.append(int(torch.multinomial(shares, 1, generator=generator)))
    return rows


def log_shares(model: CausalLM, rows: list[list[int]], *, kv_dtype: torch.dtype | None = None) -> Tensor:
    """[positions, vocabulary] over all rows."""
    caches = [TinyCache(model.cache_groups, num_rows=1, context=len(ids), kv_dtype=kv_dtype) for ids in rows]
    return torch.cat([logits_of(model, cache, [(0, ids)]) for cache, ids in zip(caches, rows, strict=True)]).log_softmax(dim=-1)


@torch.inference_mode()
def main() -> bool:
    """Whether every form reached what is asked of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--first-id", type=int, default=1, help="the token that begins a text")
    arguments = parser.parse_args()
    if arguments.model is None:
        print("name a model's folder to see what rounding its weights costs")
        return True
    model = load(arguments.model)
    rows = draw(model, num_rows=arguments.rows, num_tokens=arguments.tokens, first_id=arguments.first_id)
    exact = log_shares(model, rows)
    is_reached = True
    for name, forms in FORMS.items():
        is_reached &= report(name, exact, log_shares(load(arguments.model, forms), rows))
    return report("int8 cache", exact, log_shares(model, rows, kv_dtype=torch.int8)) and is_reached


def report(name: str, exact: Tensor, rounded: Tensor) -> bool:
    """Print how far distributions, as logarithms [positions, vocabulary], are from the exact ones, and whether that is near enough."""
    agreement = (rounded.argmax(dim=-1) == exact.argmax(dim=-1)).double().mean()
    divergence = (exact.exp() * (exact - rounded)).sum(dim=-1).mean()
    least, most = ASKED.get(name, (0.0, float("inf")))
    asked = f" (asked: {least:.0%}, below {most:g})" if name in ASKED else ""
    print(f"{name:12} the same top token at {agreement:.2%} of {len(exact)} positions, divergence {divergence:.6f} nats{asked}", flush=True)
    return bool(agreement >= least and divergence < most)


if __name__ == "__main__":
    sys.exit(not main())
