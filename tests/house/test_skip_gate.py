"""The gate lets listed skips through and fails a run that has any other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LISTED = "import pytest\ndef test_a():\n    pytest.skip('test data folder is absent')\n"
UNLISTED = "import pytest\n@pytest.mark.skip(reason='not today')\ndef test_a():\n    pass\n"
WHOLE_MODULE = "import pytest\npytest.importorskip('no_such_module', reason='not here')\ndef test_a():\n    pass\n"
PASSES = "\ndef test_b():\n    pass\n"


def run(repository: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Pytest with the gate over the tests in `folder`, with further arguments, with no data but those that `environment` names."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.skip_gate", "-p", "no:cacheprovider", "-rs", "-q", *arguments]
    own = {name: value for name, value in os.environ.items() if name not in ("CI", "TEST_DATA_DIR")}
    own |= {"PYTHONPATH": str(repository), **environment}
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=60)


def test_a_run_without_its_data_says_so_and_fails_where_the_data_must_be(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(LISTED + PASSES)
    named = {"TEST_DATA_DIR": str(tmp_path)}
    for environment, exit_code in (({}, 0), (named, 0), ({"CI": "true", **named}, 1)):
        done = run(repository, tmp_path, **environment)
        assert "WITHOUT DATA: 1 tests" in done.stdout
        assert done.returncode == exit_code, done.stdout
        assert ("SKIP NOT LISTED" in done.stdout) is bool(exit_code)


@pytest.mark.parametrize(
    ("text", "is_let_through", "words"),
    [
        (LISTED, True, "test data folder is absent"),
        (UNLISTED, False, "SKIP NOT LISTED in tests/skips.txt: test_it.py::test_a | not today"),
        (WHOLE_MODULE, False, "SKIP NOT LISTED in tests/skips.txt: test_it.py | not here"),
    ],
)
def test_gate(repository: Path, tmp_path: Path, text: str, is_let_through: bool, words: str) -> None:
    (tmp_path / "test_it.py").write_text(text + PASSES)
    done = run(repository, tmp_path)
    assert words in done.stdout
    assert (done.returncode == 0) is is_let_through, done.stdout


def test_two_processes_tell_every_skip_once(repository: Path, tmp_path: Path) -> None:
    for name, text in (("listed", LISTED), ("unlisted", UNLISTED), ("module", WHOLE_MODULE)):
        (tmp_path / f"test_{name}.py").write_text(text + PASSES)
    done = run(repository, tmp_path, "-n", "2")
    assert done.returncode == 1 and "2 passed, 3 skipped" in done.stdout, done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("SKIP NOT LISTED")]
    assert sorted(line.split(": ")[1] for line in told) == ["test_module.py | not here", "test_unlisted.py::test_a | not today"]
    for reason in ("test data folder is absent", "not today", "not here"):
        assert sum(line.startswith("SKIPPED") and line.endswith(reason) for line in done.stdout.splitlines()) == 1
