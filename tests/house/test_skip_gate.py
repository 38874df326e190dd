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
    command = [sys.executable, "-m", "pytest", "-p", "tests.skip_gate", "-p", "no:cacheprovider", "-rs", "-q", "test_it.py"]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert words in done.stdout
    assert (done.returncode == 0) is is_let_through, done.stdout
