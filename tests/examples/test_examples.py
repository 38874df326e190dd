"""Every example runs as its docstring says."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = {"stream_tokens.py": "actorllm serve", "batch_of_prompts.py": "27 + 15"}
CLIENTS = {"chat_socket.py", "chat_in_browser.html", "openai_client.py"}
"""Tested by test_clients.py."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(repository: Path, tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "examples" / name)], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert EXAMPLES[name] in done.stdout


def test_every_example_is_tested(repository: Path) -> None:
    assert {path.name for path in (repository / "examples").glob("*.*")} == {*EXAMPLES, *CLIENTS}


def test_the_readme_python_runs(repository: Path, tmp_path: Path) -> None:
    text = (repository / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "actorllm serve" in done.stdout
