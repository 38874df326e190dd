"""Fixtures that every test may use."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actorllm.execution import device_choice
from actorllm.execution.devices import Devices
from actorllm.messages import Step
from tests.skip_gate import DATA_ABSENT, data_folder

RUN_TOGETHER = ("tests/packaging/", "tests/parity/", "tests/server/page/")
"""Folders whose files share something that is expensive: wheels, models, a browser."""

TABLE = "table"
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n N`: N processes take the files in their order, so that the last ones are short."""
    from xdist.scheduler import LoadScopeScheduling  # is installed where `-n` is known

    class FilesAndFolders(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((folder for folder in RUN_TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return FilesAndFolders(config, log)


@pytest.fixture(scope="session", autouse=True)
def device_of_tests() -> Iterator[None]:
    """Without a word on the device a test means the CPU, also where there is a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_choice, "best_device", lambda: "cpu")
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed"):
        for text in (value for name, value in report.user_properties if name == TABLE):
            terminalreporter.write(f"\n{text}\n")


@pytest.fixture
def show_table(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Keeps a text for the last lines of the run, which may be those of another process."""
    return lambda text: record_property(TABLE, text)


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
