"""Random tiny models of each architecture, saved as real checkpoints beside a reference that is not ours.

`PARITY_CONFIGS` is how many configurations of each architecture are compared (2 by default).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.families import CASES
from tests.parity.families.case import VOCAB_SIZE

NUM_CONFIGS = int(os.environ.get("PARITY_CONFIGS", "2"))


@dataclass(frozen=True)
class ParityCase:
    """A reference model in float32, and the directory it was saved to with a tokenizer."""

    model: Any
    directory: Path

    @property
    def vocab_size(self) -> int:
        """Of the text part, where the reference reads more than text."""
        return getattr(self.model.config, "text_config", self.model.config).vocab_size

    @property
    def one_by_one_from(self) -> int | None:
        """A dynamic rotary base depends on how far the sequence has come when a key is made: from this position on the
        reference is fed as `generate` goes."""
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        return self.model.config.max_position_embeddings if rope.get("rope_type") == "dynamic" else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "parity_case" in metafunc.fixturenames:
        names = [(architecture, seed) for architecture in CASES for seed in range(NUM_CONFIGS)]
        metafunc.parametrize("parity_case", names, indirect=True, ids=[f"{name}-{seed}" for name, seed in names], scope="session")


@pytest.fixture(scope="session")
def parity_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ParityCase:
    """Each architecture and seed in turn."""
    architecture, seed = request.param
    directory = tmp_path_factory.mktemp(f"{architecture}-{seed}")
    return ParityCase(CASES[architecture](seed, directory), directory)


@pytest.fixture
def prompt() -> list[int]:
    """Token ids longer than every window and every original context."""
    return torch.randint(VOCAB_SIZE, (48,), generator=torch.Generator().manual_seed(7)).tolist()
