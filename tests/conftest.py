"""Fixtures that every test may use."""

from pathlib import Path

import pytest

from actorllm.execution.devices import Devices
from actorllm.messages import Step
from tests.skip_gate import DATA_ABSENT, data_folder

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real tokenizers, configs and a real small model; `TEST_DATA_DIR` names it."""
    path = data_folder()
    if not path.is_dir():
        pytest.skip(DATA_ABSENT)
    return path


@pytest.fixture(scope="session")
def stories_dir(data_dir: Path) -> Path:
    """A real trained 260K-parameter Llama in Hugging Face form."""
    return data_dir / "models" / "stories260K"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every step that an engine of this process gives to its devices from now on."""
    seen: list[Step] = []
    run = Devices.run
    monkeypatch.setattr(Devices, "run", lambda devices, step, deliver: (seen.append(step), run(devices, step, deliver)))
    return seen
