"""README, ARCHITECTURE, CHANGELOG and the error tree say what is really there."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import actorllm.errors as errors
from actorllm.cli import serve

TOP_FOLDERS = {"actorllm", "kernels", "plugins", "tests", "examples"}


def test_top_level(repository: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout.split()
    folders = {name.split("/")[0] for name in tracked if "/" in name}
    assert folders == TOP_FOLDERS | {".ci"}


def test_the_readme_tree_is_the_real_tree(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    tree = re.search(r"```\nactorllm/\n(.*?)```", text, re.DOTALL)
    assert tree, "README.md has no annotated tree"
    named = set(re.findall(r"^  ([\w.]+?)/? ", tree[1], re.MULTILINE))
    real = {
        path.name
        for path in (repository / "actorllm").iterdir()
        if not path.name.startswith("__") and path.suffix in ("", ".py")
    }
    assert named == real


def test_the_readme_names_every_flag_of_serve(repository: Path) -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
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
    assert not [name for name in modules if text.count(f"`{name}`") != 1]
    named = re.findall(r"^- `([\w/]+\.py)`", text, re.MULTILINE)
    assert not [name for name in named if name not in modules]


def test_the_error_tree_is_drawn_as_it_is() -> None:
    drawn = re.findall(r"(\w+)\s+(\d{3})?\s*(?:  |$)", errors.__doc__ or "", re.MULTILINE)
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.ActorLLMError)}
    lines = [line for line in (errors.__doc__ or "").splitlines() if re.search(r"(├──|└──|^ {4}ActorLLMError)", line)]
    names = {re.search(r"([A-Z]\w+)", line)[1]: line for line in lines}  # type: ignore[index]
    assert set(names) == set(classes), drawn
    for name, line in names.items():
        status = re.search(r"\b(\d{3})\b", line)
        assert status is None or int(status[1]) == classes[name].status, line


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
