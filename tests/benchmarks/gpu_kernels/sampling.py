"""Sampling, beside torch's operators for the same."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.sampling import Needs, Rows, Seen, reference
from actorllm_kernels.sampling import triton as sampling
from gpu_kernels.problem import DEVICE, REHEARSAL, Problem, num_bytes, random

ASKED = {
    "greedy": (0.0, 0, 1.0, 0.0),
    "temperature": (0.8, 0, 1.0, 0.0),
    "top-k 50": (0.8, 50, 1.0, 0.0),
    "top-p 0.9": (0.8, 0, 0.9, 0.0),
    "top-k 50 and top-p 0.9": (0.8, 50, 0.9, 0.0),
}
"""Temperature, top_k, top_p and min_p of all rows."""


def draw_problem(
    num_rows: int, vocab_size: int, asked: tuple[float, int, float, float], *, chosen: Configuration | None = None
) -> Problem:
    logits = random(num_rows, vocab_size, dtype=torch.float32) * 3
    temperature, top_k, top_p, min_p = asked
    parameters = torch.tensor([temperature, top_k or vocab_size, top_p, min_p, 1, 0, 0], dtype=torch.float64, device=DEVICE)
    where = torch.arange(num_rows, device=DEVICE)
    rows = Rows(where * 7 + 3, parameters.repeat(num_rows, 1))
    needs = Needs(temperature > 0, top_k > 0, top_p < 1, min_p > 0)
    ids = torch.full_like(where, -7)
    memory = sampling.workspace(num_rows, vocab_size, device=DEVICE, chosen=chosen)
    options = {"rows": rows, "needs": needs, "ids_S": ids, "memory": memory, "chosen": chosen}
    launches = sampling.launches(logits, where, where, **options)

    def rival() -> Callable[[], object]:
        return lambda: reference.draw(logits, where, where, rows=rows, needs=needs)

    return Problem(
        launches,
        lambda: (ids, reference.draw(logits, where, where, rows=rows, needs=needs)),
        num_bytes(logits),
        rival=rival,
        largest_share=0.02 if temperature > 0 else 0,
    )


def penalize_problem(num_rows: int, vocab_size: int) -> Problem:
    logits, where = random(num_rows, vocab_size, dtype=torch.float32), torch.arange(num_rows, device=DEVICE)
    parameters = torch.tensor([1, vocab_size, 1, 0, 1.2, 0.5, 0.1], dtype=torch.float64, device=DEVICE).repeat(num_rows, 1)
    rows, exact = Rows(where, parameters), logits.clone()
    seen = Seen((logits > 1).int(), logits < -1)
    launch = sampling.penalize_launch(logits, where, seen, rows=rows)

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        reference.penalize(exact, where, seen, rows=rows)
        return logits.clone(), exact

    return Problem([launch], results, 2 * num_bytes(logits) + num_bytes(seen.output_RV, seen.prompt_RV))


def sampling_cases() -> Iterator[tuple[str, Callable[..., Problem]]]:
    batches, vocab_size = ((1,), 600) if REHEARSAL else ((1, 64, 256), 128_256)
    for num_rows in batches:
        for name, asked in ASKED.items():
            yield f"sample {num_rows} x {vocab_size}, {name}", partial(draw_problem, num_rows, vocab_size, asked)
    yield f"penalties {batches[-1]} x {vocab_size}", partial(penalize_problem, batches[-1], vocab_size)
