"""Versions and ranges of the distributions fit each other and the pinned set-up."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import actorllm

UNPINNED = ("triton>=",)
"""torch for GPUs brings the very triton that it needs."""


def pinned(path: Path) -> dict[str, str]:
    """Name -> version of a requirements file, which must pin everything but `UNPINNED`."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith(("#", "-r "))]
    lines = [line for line in lines if not line.startswith(UNPINNED)]
    assert not [line for line in lines if not re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", line)]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(each.name): next(iter(each.specifier)).version for each in requirements}


def project_files(repository: Path) -> list[Path]:
    return [path for pattern in ("pyproject.toml", "kernels/pyproject.toml", "plugins/*/pyproject.toml") for path in repository.glob(pattern)]


@pytest.fixture
def projects(repository: Path) -> list[dict]:
    return [tomllib.loads(path.read_text())["project"] for path in project_files(repository)]


def test_the_versions_are_one(projects: list[dict]) -> None:
    assert {project["version"] for project in projects} == {actorllm.__version__}
    assert {project["requires-python"] for project in projects} == {">=3.11,<3.14"}


def test_what_is_pinned_lies_in_the_ranges(repository: Path, projects: list[dict]) -> None:
    versions = pinned(repository / "requirements.txt") | pinned(repository / "requirements-dev.txt") | {canonicalize_name(project["name"]): project["version"] for project in projects}
    for project in projects:
        optional = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
        lines = [line for line in project["dependencies"] + optional if not line.startswith(UNPINNED)]
        for requirement in map(Requirement, lines):
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), f"{project['name']}: {requirement}"


def test_the_development_set_up_is_pinned_too(repository: Path) -> None:
    tools = pinned(repository / "requirements-dev.txt")
    assert {"pytest", "ruff", "pyright", "import-linter", "transformers", "hypothesis", "openai"} <= set(tools)
    assert not set(tools) & set(pinned(repository / "requirements.txt"))
