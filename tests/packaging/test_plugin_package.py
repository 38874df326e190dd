"""The example of a third-party plugin: installed, served, and held to the public modules. Its own tests run with the tutorial."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.conftest import Installation

SERVE = """
import json, sys
import torch
from actorllm import LLM, SamplingParams
from safetensors.torch import load_file
from tokenizers import Tokenizer
sys.path.insert(0, sys.argv[1])
from make_model import write_model
from pathlib import Path
from test_definition import by_definition

model = Path("brook-model")
write_model(model)
prompts, weights, tokenizer = ["a brook", "Die Forelle", "x" * 70], load_file(model / "model.safetensors"), Tokenizer.from_file(str(model / "tokenizer.json"))
with LLM(str(model)) as llm:
    texts = llm.generate(prompts, SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True))
for prompt, text in zip(prompts, texts, strict=True):
    ids = tokenizer.encode(prompt).ids
    for _ in range(24):
        ids.append(int(by_definition(ids, weights)[-1].argmax()))
    assert text == tokenizer.decode(ids[-24:]), (prompt, text)
print("served", len(texts))
"""


@pytest.fixture
def package(repository: Path) -> Path:
    return repository / "examples" / "plugin_package"


@pytest.fixture
def elsewhere(package: Path, tmp_path: Path) -> Path:
    """A copy of the package that is in no repository."""
    return shutil.copytree(package, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__", ".ruff_cache"))


@pytest.fixture
def installed(elsewhere: Path, workshop: Installation) -> Iterator[Installation]:
    """An environment that has the package; it is gone afterwards."""
    workshop.pip_install(str(elsewhere))
    yield workshop
    workshop.run("python", "-m", "pip", "uninstall", "--yes", "--quiet", "actorllm-brook")


@pytest.mark.timeout(300)
def test_it_is_installed_and_generates_what_its_definition_says(elsewhere: Path, installed: Installation) -> None:
    rows = json.loads(installed.run("actorllm", "plugin", "list", "--json"))
    row = next(row for row in rows if row["architecture"] == "BrookForCausalLM")
    assert (row["distribution"], row["state"]) == ("actorllm-brook", "ready")
    assert "served 3" in installed.run("python", "-B", "-c", SERVE, str(elsewhere / "tests"))


def imports_kept(repository: Path, package: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter's judgement of the package by the contract of the plugins in this repository."""
    linter = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(contract for contract in linter["contracts"] if contract["name"].startswith("Plugins use the public plugin API"))
    lines = ["[importlinter]", "root_packages =", "  actorllm", "  actorllm_brook", "[importlinter:contract:public]"]
    lines += [f"name = {contract['name']}", "type = forbidden", "source_modules = actorllm_brook", "forbidden_modules ="]
    lines += [*(f"  {module}" for module in contract["forbidden_modules"]), "allow_indirect_imports = True"]
    (folder / "linter.ini").write_text("\n".join(lines))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(package), str(repository)))}
    command = [str(Path(sys.executable).with_name("lint-imports")), "--config", "linter.ini", "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)


def test_it_imports_public_modules_only(repository: Path, package: Path, tmp_path: Path) -> None:
    done = imports_kept(repository, package, tmp_path)
    assert done.returncode == 0 and "1 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_an_import_of_a_private_module_is_found(repository: Path, elsewhere: Path, tmp_path: Path) -> None:
    with (elsewhere / "actorllm_brook" / "model.py").open("a") as file:
        file.write("\nfrom actorllm.weights.source import WeightSource\n")
    done = imports_kept(repository, elsewhere, tmp_path)
    assert done.returncode == 1 and "actorllm_brook.model -> actorllm.weights.source" in done.stdout, done.stdout
