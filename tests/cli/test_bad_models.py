"""A model that cannot be served: exit code 2, one sentence that says the mend, no traceback."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file


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


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "actorllm", "serve", "--port", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_models(stories_dir: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories_dir, folder, copy_function=shutil.copyfile)
    damage, words = DAMAGES[name]
    damage(folder)
    done = serve(str(folder))
    assert done.returncode == 2, done.stderr
    assert "actorllm: error: " in done.stderr and words in done.stderr
    assert "Traceback" not in done.stderr


def test_memory_that_cannot_hold_the_context_names_the_numbers_to_change(stories_dir: Path) -> None:
    done = serve(str(stories_dir), "--kv-memory", "1KB")
    assert done.returncode == 2, done.stderr
    assert "--kv-memory" in done.stderr and "--context" in done.stderr and "Traceback" not in done.stderr
