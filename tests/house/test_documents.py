"""README, ARCHITECTURE, CHANGELOG and the error tree say what is really there."""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import actorllm.errors as errors
from actorllm.cli import chat, serve
from tests.house.architecture_table import with_table

TOP_FOLDERS = {"actorllm", "kernels", "plugins", "tests", "examples"}


def test_top_level(repository: Path) -> None:
    if (repository / ".git").exists():
        listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout.split()
        folders = {name.split("/")[0] for name in listed if "/" in name}
    else:
        folders = {path.name for path in repository.iterdir() if path.is_dir()}
    assert {name for name in folders if not name.startswith(".")} == TOP_FOLDERS


def drawn_tree(text: str) -> dict[str, set[str]]:
    """Top-level folder -> the names that README's annotated tree gives below it."""
    found = re.search(r"```\n(actorllm/\n.*?)```", text, re.DOTALL)
    assert found, "README.md has no annotated tree"
    tree, folder = {}, ""
    for line in found[1].splitlines():
        name = line.split()[0].rstrip("/")
        if line.startswith(" "):
            tree[folder].add(name)
        else:
            folder = name
            tree[folder] = set()
    return tree


def test_the_readme_tree_is_the_real_tree(repository: Path) -> None:
    tree = drawn_tree((repository / "README.md").read_text())
    assert set(tree) == TOP_FOLDERS
    real = {path.name for path in (repository / "actorllm").iterdir() if path.suffix in ("", ".py") and not path.name.startswith("__")}
    assert tree["actorllm"] == real
    assert tree["plugins"] == {path.parent.name for path in (repository / "plugins").glob("*/pyproject.toml")}
    assert not [name for folder, names in tree.items() for name in names if not (repository / folder / name).exists()]


@pytest.mark.parametrize("command", [serve, chat], ids=["serve", "chat"])
def test_the_readme_names_every_flag(repository: Path, command: ModuleType) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")} - {"--help"}
    text = (repository / "README.md").read_text()
    assert not [flag for flag in flags if flag not in text]


def test_architecture_has_one_line_per_module(repository: Path) -> None:
    text = (repository / "ARCHITECTURE.md").read_text()
    modules = [
        str(path.relative_to(repository / "actorllm"))
        for path in (repository / "actorllm").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert not [name for name in modules if text.count(f"\n- `{name}`") != 1]
    named = re.findall(r"^- `([\w/]+\.py)`", text, re.MULTILINE)
    assert not [name for name in named if name not in modules]


def test_the_readme_lists_the_architectures_of_the_plugins(repository: Path) -> None:
    is_current = (repository / "README.md").read_text() == with_table(repository)
    assert is_current, "README.md: run `make readme` (or .venv/bin/python -m tests.house.architecture_table)"


def drawn_errors() -> list[tuple[str, str | None, int | None]]:
    """(name, parent, status) of every line of the tree in errors.py's docstring."""
    drawn, parents = [], {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([\s│├└─]*)([A-Z]\w+)(?: +(\d{3})\b)?(?: {2,}\S|$)", line)
        if found and line.startswith("    "):
            depth = len(found[1]) // 4
            parents[depth] = found[2]
            drawn.append((found[2], parents.get(depth - 1), int(found[3]) if found[3] else None))
    return drawn


def test_the_error_tree_is_drawn_as_it_is() -> None:
    real = {name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.ActorLLMError)}
    drawn = drawn_errors()
    assert sorted(name for name, _, _ in drawn) == sorted(real)
    for name, parent, status in drawn:
        assert parent is None or real[parent] in real[name].__bases__, f"{name} is drawn under {parent}"
        assert status is None or status == real[name].status, f"{name} is drawn with {status}"
    leaves = {name for name, value in real.items() if not value.__subclasses__()}
    assert not [name for name, _, status in drawn if name in leaves and status is None], "an error without its status"


def test_the_changelog_is_kept(repository: Path) -> None:
    assert "## [Unreleased]" in (repository / "CHANGELOG.md").read_text()


def test_importing_transformers_from_the_root_is_not_disturbed_by_our_kernels_folder(repository: Path) -> None:
    script = (
        "import torch, transformers\n"
        "config = transformers.LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1,"
        " num_attention_heads=2, num_key_value_heads=2)\n"
        "print(transformers.LlamaForCausalLM(config)(torch.tensor([[1, 2]])).logits.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "[1, 2, 16]" in done.stdout
