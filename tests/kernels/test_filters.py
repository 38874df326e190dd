"""The allowed sets of top-k, top-p and min-p, against a brute force that sorts one row at a time."""

import numpy as np
import pytest
import torch

from actorllm_kernels.sampling.filters import NARROW, FilterParameters, allowed

OFF = (0, 1.0, 0.0)


def brute_force(scores: np.ndarray, row: tuple[int, float, float]) -> np.ndarray:
    """The definition: cut one after another, renormalise after each cut."""
    top_k, top_p, min_p = row
    probabilities = np.exp(scores.astype(np.float64))
    order = np.lexsort((np.arange(len(scores)), -scores))
    kept = list(order[:top_k] if top_k else order)
    if top_p < 1:
        share = np.cumsum(probabilities[kept]) / probabilities[kept].sum()
        kept = kept[: int((share < top_p).sum()) + 1]
    mask = np.zeros(len(scores), dtype=bool)
    mask[kept] = True
    return mask & (probabilities >= min_p * probabilities.max())


def parameters(rows: list[tuple[int, float, float]], vocab_size: int) -> FilterParameters:
    ks = [k if 0 < k < vocab_size else 0 for k, _, _ in rows]
    return FilterParameters(
        top_k_S=torch.tensor([k or vocab_size for k in ks]),
        top_p_S=torch.tensor([p for _, p, _ in rows], dtype=torch.float64),
        min_p_S=torch.tensor([m for _, _, m in rows]),
        max_k=max(ks),
        has_nucleus=any(p < 1 and k == 0 for k, (_, p, _) in zip(ks, rows, strict=True)),
    )


def log_weights(generator: np.random.Generator, shape: tuple[int, int], spread: float) -> np.ndarray:
    logits = generator.normal(scale=spread, size=shape).astype(np.float32)
    return logits - logits.max(axis=1, keepdims=True)


@pytest.mark.parametrize("vocab_size", [7, 300, 3000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_equals_the_definition(vocab_size: int, spread: float) -> None:
    generator = np.random.default_rng(vocab_size)
    rows = [OFF] + [
        (
            int(generator.choice([0, 1, 2, 5, 40, vocab_size, 10 * vocab_size])),
            float(generator.choice([1.0, 0.999, 0.9, 0.5, 0.01])),
            float(generator.choice([0.0, 0.001, 0.1, 1.0])),
        )
        for _ in range(40)
    ]
    scores = log_weights(generator, (len(rows), vocab_size), spread)
    found = allowed(torch.from_numpy(scores), parameters(rows, vocab_size)).numpy()
    for row, mask, own_scores in zip(rows, found, scores, strict=True):
        assert (mask == brute_force(own_scores, row)).all(), row


def test_a_flat_row_and_a_steep_row_do_not_change_each_other() -> None:
    vocab_size = 4 * NARROW
    generator = np.random.default_rng(0)
    flat, steep = (log_weights(generator, (1, vocab_size), 0.01), log_weights(generator, (1, vocab_size), 8.0))
    both = torch.from_numpy(np.concatenate((flat, steep)))
    rows = [(0, 0.9, 0.0), (0, 0.9, 0.0)]
    together = allowed(both, parameters(rows, vocab_size))
    assert together[0].sum() > NARROW, "the flat row needs the full sort"
    for index in range(2):
        alone = allowed(both[index : index + 1], parameters(rows[:1], vocab_size))
        assert torch.equal(alone[0], together[index])


@pytest.mark.parametrize("row", [(3, 1.0, 0.0), (0, 0.55, 0.0), (6, 0.5, 0.0)])
def test_of_equal_scores_the_lower_ids_stay(row: tuple[int, float, float]) -> None:
    scores = torch.zeros(1, 5)
    mask = allowed(scores, parameters([row], 5))
    assert mask.tolist() == [[True, True, True, False, False]]
