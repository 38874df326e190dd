"""Sampling, beside torch's operators for the same."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from actorllm_kernels.comparison import tolerance
from actorllm_kernels.configurations import Configuration
from actorllm_kernels.sampling import Adjustments, Needs, Rows, Seen, reference
from actorllm_kernels.sampling import triton as sampling
from gpu_kernels.problem import DEVICE, REHEARSAL, Pair, Problem, normal, num_bytes

EXACT = tolerance(torch.float32)
ASKED = {
    "greedy": (0.0, 0, 1.0, 0.0),
    "temperature": (0.8, 0, 1.0, 0.0),
    "top-k 50": (0.8, 50, 1.0, 0.0),
    "top-p 0.9": (0.8, 0, 0.9, 0.0),
    "min-p 0.05": (0.8, 0, 1.0, 0.05),
    "top-k 50 and top-p 0.9": (0.8, 50, 0.9, 0.0),
    "top-k 50, top-p 0.9 and min-p 0.05": (0.8, 50, 0.9, 0.05),
}
"""Temperature, top_k, top_p and min_p of all rows."""


def draw_problem(
    num_rows: int, vocab_size: int, asked: tuple[float, int, float, float], *, chosen: Configuration | None = None
) -> Problem:
    logits = normal(num_rows, vocab_size, dtype=torch.float32) * 3
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
        lambda: [(ids, reference.draw(logits, where, where, rows=rows, needs=needs))],
        num_bytes(logits),
        rival=rival,
        largest_share=0.02 if temperature > 0 else 0,
    )


def penalize_problem(num_rows: int, vocab_size: int) -> Problem:
    logits, where = normal(num_rows, vocab_size, dtype=torch.float32), torch.arange(num_rows, device=DEVICE)
    parameters = torch.tensor([1, vocab_size, 1, 0, 1.2, 0.5, 0.1], dtype=torch.float64, device=DEVICE).repeat(num_rows, 1)
    rows, exact = Rows(where, parameters), logits.clone()
    seen = Seen((logits > 1).int(), logits < -1)
    launch = sampling.penalize_launch(logits, where, seen, rows=rows)

    def results() -> list[Pair]:
        reference.penalize(exact, where, seen, rows=rows)
        return [(logits.clone(), exact)]

    return Problem([launch], results, 2 * num_bytes(logits) + num_bytes(seen.output_RV, seen.prompt_RV), allowed=EXACT)


def adjust_problem(num_rows: int, vocab_size: int, width: int) -> Problem:
    """A bias for `width` tokens of each row, a quarter of which are banned."""
    logits, where = normal(num_rows, vocab_size, dtype=torch.float32), torch.arange(num_rows, device=DEVICE)
    ids = torch.stack([torch.randperm(vocab_size, device=DEVICE)[:width] for _ in range(num_rows)])
    until = torch.zeros_like(ids)
    until[:, ::4] = num_rows
    biases = normal(num_rows, width, dtype=torch.float32, seed=1)
    adjustments, exact = Adjustments(torch.full_like(where, width), ids, biases, until), logits.clone()
    launch = sampling.adjust_launch(logits, where, where, adjustments=adjustments)

    def results() -> list[Pair]:
        """Bans are compared by what exp makes of them."""
        reference.adjust(exact, where, where, adjustments=adjustments)
        return [(logits.exp(), exact.exp())]

    size = 2 * ids.numel() * logits.element_size() + num_bytes(ids, biases, until)
    return Problem([launch], results, size, allowed=EXACT)


def count_problem(num_rows: int, vocab_size: int) -> Problem:
    """One sampled token of each row; every seventh row has none."""
    where = torch.arange(num_rows, device=DEVICE)
    ids = torch.where(where % 7 == 0, -1, where * 31 % vocab_size)
    seen, exact = (Seen(torch.ones(num_rows, vocab_size, dtype=torch.int32, device=DEVICE), torch.empty(0)) for _ in range(2))

    def results() -> list[Pair]:
        reference.count(ids, where, exact)
        return [(seen.output_RV.clone(), exact.output_RV)]

    return Problem([sampling.count_launch(ids, where, seen)], results, num_bytes(ids, where) + 8 * num_rows)


def sampling_cases() -> Iterator[tuple[str, Callable[..., Problem]]]:
    batches, vocab_size = ((1,), 600) if REHEARSAL else ((1, 64, 256), 128_256)
    for num_rows in batches:
        for name, asked in ASKED.items():
            yield f"sample {num_rows} x {vocab_size}, {name}", partial(draw_problem, num_rows, vocab_size, asked)
    yield f"penalties {batches[-1]} x {vocab_size}", partial(penalize_problem, batches[-1], vocab_size)
    yield f"bias and bans {batches[-1]} x {vocab_size}", partial(adjust_problem, batches[-1], vocab_size, 20 if REHEARSAL else 300)
    yield f"count {batches[-1]} x {vocab_size}", partial(count_problem, batches[-1], vocab_size)
