"""The five ways in which a plugin can be unusable, each with a package that was built and installed."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.conftest import Installation, clean_environment

SOUND = "from actorllm_echo import EchoForCausalLM as {architecture}\n"
PACKAGES = {
    "broken-plugin": ("BrokenForCausalLM", "v1", "import a_package_that_is_not_there\n"),
    "outdated-plugin": ("OutdatedForCausalLM", "v0", SOUND),
    "first-plugin": ("AmbiguousForCausalLM", "v1", SOUND),
    "second-plugin": ("AmbiguousForCausalLM", "v1", SOUND),
    "invalid-plugin": ("InvalidForCausalLM", "v1", "class {architecture}:\n    pass\n"),
}
IMPORTED = """
import sys
from actorllm.cli.main import main
main(["plugin", "list"])
print(sorted(name for name in sys.modules if name.split(".")[0] in ("torch", *sys.argv[1:]) or name.startswith("actorllm_")))
"""


def write(folder: Path, name: str, architecture: str, version: str, source: str) -> Path:
    module = name.replace("-", "_")
    package = folder / name
    (package / module).mkdir(parents=True)
    (package / module / "__init__.py").write_text(source.format(architecture=architecture))
    (package / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n\n[project]\nname = "{name}"\nversion = "3.1"\n\n'
        f'[project.entry-points."actorllm.models.{version}"]\n{architecture} = "{module}:{architecture}"\n'
    )
    return package


@pytest.fixture(scope="module")
def damaged(workshop: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An environment in which all of them are installed at once; gone afterwards."""
    folder = tmp_path_factory.mktemp("packages")
    workshop.pip_install(*(str(write(folder, name, *facts)) for name, facts in PACKAGES.items()))
    yield workshop
    workshop.run("python", "-m", "pip", "uninstall", "--yes", "--quiet", *PACKAGES)


ERRORS = {
    "BrokenForCausalLM": "importing BrokenForCausalLM = broken_plugin:BrokenForCausalLM of broken-plugin 3.1 raised ModuleNotFoundError: "
    "No module named 'a_package_that_is_not_there'. Reinstall broken-plugin, or tell its author",
    "OutdatedForCausalLM": "OutdatedForCausalLM = outdated_plugin:OutdatedForCausalLM of outdated-plugin 3.1 speaks version 0 of the plugin "
    "contract, this is version 1: install a release of outdated-plugin that registers under 'actorllm.models.v1'",
    "AmbiguousForCausalLM": "several plugins serve AmbiguousForCausalLM: AmbiguousForCausalLM = first_plugin:AmbiguousForCausalLM of "
    "first-plugin 3.1; AmbiguousForCausalLM = second_plugin:AmbiguousForCausalLM of second-plugin 3.1. Uninstall all but one",
    "InvalidForCausalLM": "InvalidForCausalLM = invalid_plugin:InvalidForCausalLM of invalid-plugin 3.1 is not a subclass of "
    "actorllm.models.contract.CausalLM: tell its author",
    "MissingForCausalLM": "no installed plugin serves MissingForCausalLM.",
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("architecture", ERRORS)
def test_each_is_one_sentence_with_the_culprit_and_the_mend(damaged: Installation, architecture: str) -> None:
    command = [str(damaged.bin / "actorllm"), "plugin", "check", architecture]
    done = subprocess.run(command, cwd=damaged.folder, env=clean_environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith(f"actorllm: error: {ERRORS[architecture]}") and done.stderr.count("\n") == 1


def test_the_list_shows_all_and_imports_none(damaged: Installation) -> None:
    rows = {row["distribution"]: row["state"] for row in json.loads(damaged.run("actorllm", "plugin", "list", "--json"))}
    assert [rows[name] for name in PACKAGES] == ["ready", "outdated", "ambiguous", "ambiguous", "ready"]
    assert rows["actorllm-echo"] == "ready"
    lines = damaged.run("python", "-c", IMPORTED, *(name.replace("-", "_") for name in PACKAGES)).splitlines()
    assert lines[-1] == "[]" and any(line.startswith("BrokenForCausalLM ") for line in lines)
