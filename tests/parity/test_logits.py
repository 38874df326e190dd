"""Teacher-forced logits equal those of the reference, whole and in chunks, on one rank and on two."""

import json
from pathlib import Path

import pytest
import torch

from actorllm.layers.shard import Shard
from actorllm.models.catalog import find_model
from actorllm.models.contract import CausalLM
from actorllm.testing.against_transformers import load_folder
from actorllm.testing.reference import reference_logits
from actorllm.testing.tiny import logits_in_chunks, on_thread_ranks

TOLERANCE = 1e-4


def load(directory: Path, shard: Shard) -> CausalLM:
    [architecture] = json.loads((directory / "config.json").read_text())["architectures"]
    return load_folder(find_model(architecture), directory, shard)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, as a part of the logits' spread."""
    return ((ours - theirs).abs().max() / theirs.std()).item()


@pytest.fixture
def expected(parity_case, prompt):
    logits = reference_logits(parity_case.model, prompt, one_by_one_from=parity_case.one_by_one_from)
    assert logits.std() >= 1
    return logits


def test_logits_equal_the_reference(parity_case, prompt, expected, figure):
    model = load(parity_case.directory, Shard())
    figure("whole", worst := difference(logits_in_chunks(model, prompt), expected))
    assert worst < TOLERANCE


def test_chunks_change_nothing(parity_case, prompt, expected, figure):
    model = load(parity_case.directory, Shard())
    figure("chunks", worst := difference(logits_in_chunks(model, prompt, sizes=[5, 1, 1, 17, 9], seed=1), expected))
    assert worst < TOLERANCE


def test_two_ranks_equal_the_reference(parity_case, prompt, expected, figure):
    ranks = on_thread_ranks(2, lambda shard: logits_in_chunks(load(parity_case.directory, shard), prompt, sizes=[11]))
    figure("two ranks", worst := difference(ranks[0], expected))
    assert worst < TOLERANCE
    assert torch.equal(ranks[0], ranks[1])
