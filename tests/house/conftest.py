"""The tree as parsed files, for the tests of the house rules."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCES = ("actorllm", "kernels", "plugins", "examples")


@dataclass(frozen=True)
class SourceFile:
    """One Python file: where it is (from the root), its text and its syntax tree."""

    path: Path
    name: str
    text: str
    tree: ast.Module

    def nodes(self, *kinds: type[ast.AST]) -> list[ast.AST]:
        return [node for node in ast.walk(self.tree) if isinstance(node, kinds)]


def parsed(repository: Path, *folders: str) -> list[SourceFile]:
    files = []
    for folder in folders:
        for path in sorted((repository / folder).rglob("*.py")):
            text = path.read_text()
            files.append(SourceFile(path, str(path.relative_to(repository)), text, ast.parse(text)))
    return files


@pytest.fixture(scope="session")
def sources(repository: Path) -> list[SourceFile]:
    """Every Python file of the project, tests excluded."""
    return parsed(repository, *SOURCES)


@pytest.fixture(scope="session")
def sources_and_tests(repository: Path, sources: list[SourceFile]) -> list[SourceFile]:
    """Every Python file of the project."""
    return [*sources, *parsed(repository, "tests")]
