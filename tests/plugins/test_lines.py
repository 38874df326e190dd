"""How long a plugin is: the layers carry the weight, so that a model stays a page."""

import ast
import tomllib
from collections.abc import Callable
from pathlib import Path

PLAIN_LLAMA, NEAR_COPY = 110, 40


def modules(repository: Path) -> dict[Path, int]:
    """Every module of every plugin folder, with its lines."""
    paths = sorted(path for path in repository.glob("plugins/*/*/*.py") if path.name != "__init__.py")
    return {path: len(path.read_text().splitlines()) for path in paths}


def model_modules(repository: Path) -> dict[Path, str]:
    """The modules that an entry point leads to -> the class."""
    found = {}
    for file in repository.glob("plugins/*/pyproject.toml"):
        for value in tomllib.loads(file.read_text())["project"]["entry-points"]["actorllm.models.v1"].values():
            module, name = value.split(":")
            found[file.parent / f"{module.replace('.', '/')}.py"] = name
    return {path: name for path, name in found.items() if path.exists()}  # the others are packages


def is_near_copy(path: Path, name: str) -> bool:
    """Whether the model is another one of its package, of which it changes declarations only."""
    tree = ast.parse(path.read_text())
    siblings = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == path.parent.name
        for alias in node.names
    }
    model = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    has_methods = model is None or any(isinstance(node, ast.FunctionDef) for node in ast.walk(model))
    others = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.endswith(("Config", "ForCausalLM"))]
    return not has_methods and not others and {ast.unparse(base) for base in model.bases} <= siblings  # type: ignore[union-attr]


def test_lines_of_every_plugin(repository: Path, show_table: Callable[[str], None]) -> None:
    lines = modules(repository)
    copies = {path for path, name in model_modules(repository).items() if is_near_copy(path, name)}
    rows = (f"{path.relative_to(repository / 'plugins')!s:<50} {count:>4} lines{' (near copy)' if path in copies else ''}" for path, count in lines.items())
    show_table("\n".join(rows))
    assert lines[repository / "plugins/llama/actorllm_llama/llama.py"] <= PLAIN_LLAMA
    assert {"mistral.py", "qwen2.py", "qwen3.py"} <= {path.name for path in copies}
    assert not {path.name: lines[path] for path in copies if lines[path] > NEAR_COPY}
