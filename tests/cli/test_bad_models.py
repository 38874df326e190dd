"""A model that cannot be served: exit code 2, one sentence that says the mend, no traceback."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from actorllm.cli.main import main


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "model.safetensors"),
    "missing tensor": (lambda folder: change_tensors(folder, lambda t: t.pop("model.norm.weight")), "model.norm.weight"),
    "left over": (lambda folder: change_tensors(folder, lambda t: t.update(extra=t["model.norm.weight"].clone())), "extra"),
    "unknown architecture": (lambda folder: change_config(folder, architectures=["LamaForCausalLM"]), "LlamaForCausalLM"),
    "negative size": (lambda folder: change_config(folder, hidden_size=-1), "hidden_size"),
    "absurd size": (lambda folder: change_config(folder, num_hidden_layers=2**40), "num_hidden_layers"),
    "unknown key": (lambda folder: change_config(folder, attention_twist=3), "attention_twist"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "model has no config.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
}


@pytest.fixture(autouse=True)
def switch_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process keeps its own."""
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)


@pytest.fixture
def damaged(stories_dir: Path, tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """The folder of a model with a damage by its name, and what is to be said of it."""

    def make(name: str) -> tuple[str, str]:
        folder = shutil.copytree(stories_dir, tmp_path / "model", copy_function=shutil.copyfile)
        damage, words = DAMAGES[name]
        damage(folder)
        return str(folder), words

    return make


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_models(damaged: Callable[[str], tuple[str, str]], capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder, words = damaged(name)
    assert main(["serve", "--port", "0", folder]) == 2
    said = capsys.readouterr().err
    assert said.startswith("actorllm: error: ") and words in said


def test_a_process_ends_with_that_sentence(damaged: Callable[[str], tuple[str, str]]) -> None:
    folder, words = damaged("truncated")
    done = subprocess.run([sys.executable, "-m", "actorllm", "serve", "--port", "0", folder], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert "actorllm: error: " in done.stderr and words in done.stderr
    assert "Traceback" not in done.stderr


def test_memory_that_cannot_hold_the_context_names_the_numbers_to_change(stories_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", str(stories_dir), "--kv-memory", "1KB"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("actorllm: error: ") and "--kv-memory" in said and "--context" in said
