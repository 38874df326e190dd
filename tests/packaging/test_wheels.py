"""The wheels hold what they should, and work in an environment that knows nothing of the checkout."""

import json
import tomllib
import zipfile
from pathlib import Path

import pytest

import actorllm

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
for package in sys.argv[1:]:
    root = importlib.import_module(package)
    names = [module.name for module in pkgutil.walk_packages(root.__path__, package + ".")]
    for name in [package, *names]:
        if not name.endswith("__main__"):
            print(name, importlib.import_module(name).__file__)
"""

GENERATE = """
import actorllm_echo
from actorllm import LLM, SamplingParams
with LLM(str(actorllm_echo.directory())) as llm:
    print(llm.generate(["the quick"], SamplingParams(max_tokens=24, temperature=0.0))[0])
with LLM() as llm:
    print(llm.generate([[{"role": "user", "content": "How do I start the server?"}]], SamplingParams(max_tokens=40, temperature=0.0))[0])
"""


def test_a_wheel_holds_its_package_and_no_other(wheels: dict[str, Path]) -> None:
    for package, wheel in wheels.items():
        names = zipfile.ZipFile(wheel).namelist()
        assert {name.split("/")[0] for name in names} == {package, f"{package}-{actorllm.__version__}.dist-info"}
        assert f"{package}/py.typed" in names
        assert any(name.endswith("/licenses/LICENSE") for name in names)
        assert not [name for name in names if "__pycache__" in name]


def test_a_wheel_holds_every_file_of_its_package(repository: Path, wheels: dict[str, Path]) -> None:
    for package, wheel in wheels.items():
        folder = next(path for path in (repository, *repository.glob("kernels"), *repository.glob("plugins/*")) if (path / package).is_dir())
        real = {str(path.relative_to(folder)) for path in (folder / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert real == {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(f"{package}/")}


def test_the_command_works(installation) -> None:
    assert actorllm.__version__ in installation.run("actorllm", "--version")
    for command in (("--help",), ("serve", "--help"), ("plugin", "--help")):
        assert "usage: actorllm" in installation.run("actorllm", *command)


def test_the_plugins_are_found(repository: Path, installation) -> None:
    plugins = json.loads(installation.run("actorllm", "plugin", "list", "--json"))
    declared = set()
    for path in repository.glob("plugins/*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        declared |= {(project["name"], architecture) for architecture in project["entry-points"]["actorllm.models.v1"]}
    assert {(plugin["distribution"], plugin["architecture"]) for plugin in plugins} == declared


@pytest.mark.timeout(180)
def test_every_module_imports_from_the_wheels(installation, wheels: dict[str, Path]) -> None:
    lines = installation.run("python", "-c", IMPORT_EVERYTHING, *wheels).splitlines()
    homes = dict(line.split(" ", 1) for line in lines)
    assert {"actorllm.engine", "actorllm_kernels.attention", "actorllm_llama.llama", "actorllm_echo.model"} <= set(homes)
    assert not [name for name, home in homes.items() if not Path(home).is_relative_to(installation.site_packages)]


def test_the_bundled_models_answer(installation) -> None:
    echo, demo = installation.run("python", "-c", GENERATE).splitlines()
    assert "fox" in echo and "actorllm serve" in demo
