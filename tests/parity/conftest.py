"""Random tiny models of each architecture, saved as real checkpoints beside a reference that is not ours.

`PARITY_CONFIGS` is how many configurations of each architecture are compared (2 by default).
"""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.families import CASES
from tests.parity.families.case import VOCAB_SIZE

FEW_CONFIGS = 2
NUM_CONFIGS = int(os.environ.get("PARITY_CONFIGS", str(FEW_CONFIGS)))


@dataclass(frozen=True)
class ParityCase:
    """A reference model in float32, and the directory it was saved to with a tokenizer."""

    architecture: str
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
    if "parity_case" not in metafunc.fixturenames:
        return
    cases = [(architecture, seed) for architecture in CASES for seed in range(NUM_CONFIGS)]
    if "num_ranks" in metafunc.fixturenames:  # few configurations take turns on one rank and two, many are run on both
        runs = [(case, ranks) for case in cases for ranks in ((1, 2) if NUM_CONFIGS > FEW_CONFIGS else (1 + case[1] % 2,))]
        names = [f"{case[0]}-{case[1]}-{ranks}" for case, ranks in runs]
        metafunc.parametrize(("parity_case", "num_ranks"), runs, indirect=["parity_case"], ids=names, scope="session")
    else:
        names = [f"{architecture}-{seed}" for architecture, seed in cases]
        metafunc.parametrize("parity_case", cases, indirect=True, ids=names, scope="session")


@pytest.fixture(scope="session")
def parity_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ParityCase:
    """Each architecture and seed in turn."""
    architecture, seed = request.param
    directory = tmp_path_factory.mktemp(f"{architecture}-{seed}")
    return ParityCase(architecture, CASES[architecture](seed, directory), directory)


@pytest.fixture
def prompt() -> list[int]:
    """Token ids longer than every window and every original context."""
    return torch.randint(VOCAB_SIZE, (48,), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.fixture
def figure(parity_case: ParityCase, record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Notes a figure of the case for the table that `make parity` ends with."""
    return lambda name, value: record_property(f"{parity_case.architecture} {name}", value)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if NUM_CONFIGS <= FEW_CONFIGS:
        return
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            architecture, _, name = name.partition(" ")
            figures[architecture][name].append(value)
    rows = ["architecture | configurations | largest difference of logits / spread: whole, in chunks, two ranks"]
    rows[0] += " | served tokens, clear ones (all equal) | pauses"
    for architecture, noted in figures.items():
        differences = ", ".join(f"{max(noted[name], default=float('nan')):.1e}" for name in ("whole", "chunks", "two ranks"))
        tokens = f"{sum(noted['tokens'])}, {sum(noted['clear tokens'])}"
        rows.append(f"{architecture} | {len(noted['whole'])} | {differences} | {tokens} | {sum(noted['pauses'])}")
    terminalreporter.section("parity")
    terminalreporter.write("\n".join(rows) + "\n")
