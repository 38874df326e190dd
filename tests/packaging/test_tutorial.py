"""Every block of code in plugins/README.md is run, in its order and in a fresh environment, and shows what the text says."""

import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.packaging.conftest import Installation, clean_environment

PORT_IN_TEXT = "8000"
WRITTEN_ELSEWHERE = {"README.md"}
"""What the example's author wrote anew after the tutorial."""


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def apply_diff(diff: str, folder: Path) -> None:
    """Change a file as a reader would: what stands there with ` ` and `-` is found, once, and becomes what has ` ` and `+`."""
    head, _, body = diff.partition("\n")
    path = folder / head.removeprefix("--- ")
    text = path.read_text()
    for hunk in body.split("@@\n"):
        lines = hunk.splitlines()
        old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        assert text.count(old) == 1, f"{path.name} has this {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)


@dataclass
class Reader:
    """Does what the tutorial says in `folder`, with the commands of an environment."""

    folder: Path
    installation: Installation
    port: int
    servers: list[subprocess.Popen[str]] = field(default_factory=list)
    output: str = ""

    def do(self, language: str, content: str, *, fails: bool) -> None:
        if language == "python":
            head, _, code = content.partition("\n")
            (self.folder / head.removeprefix("# ")).write_text(code)
        elif language == "diff":
            apply_diff(content, self.folder)
        elif language == "sh" and content.startswith("actorllm serve"):
            self.serve(content)
        elif language == "sh":
            self.run(content, code=1 if fails else 0)
        else:
            assert language == "text", f"the test does not know what to do with {language}"
            self.compare(content)

    def run(self, script: str, *, code: int) -> None:
        done = subprocess.run(["bash", "-ec", self.here(script)], **self.options(), stdout=subprocess.PIPE, timeout=240)  # type: ignore[call-overload]
        self.output = done.stdout
        assert done.returncode == code, f"{script}\n{self.output}"

    def serve(self, script: str) -> None:
        self.servers.append(subprocess.Popen(["bash", "-c", f"exec {self.here(script)}"], **self.options(), stdout=subprocess.DEVNULL))  # type: ignore[call-overload]
        until = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                assert self.servers[-1].poll() is None and time.monotonic() < until, "the model is not served"
                time.sleep(0.1)

    def compare(self, wanted: str) -> None:
        """Each line of the block begins or is in a line of the output, blanks aside."""
        seen = [" ".join(line.split()) for line in self.output.splitlines()]
        for line in wanted.splitlines():
            assert any(" ".join(line.split()) in other for other in seen), f"{line!r} is not in\n{self.output}"

    def here(self, script: str) -> str:
        """The script with our port, and pip as the environment has it."""
        return re.sub(r"^pip\b", "python -m pip", script, flags=re.MULTILINE).replace(PORT_IN_TEXT, str(self.port))

    def options(self) -> dict[str, object]:
        pip = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        path = f"{self.installation.bin}{os.pathsep}{os.environ['PATH']}"
        environment = clean_environment() | pip | {"PATH": path, "OMP_NUM_THREADS": "1"}
        return {"cwd": self.folder, "env": environment, "stderr": subprocess.STDOUT, "text": True}


@pytest.fixture
def reader(workshop: Installation, tmp_path: Path) -> Iterator[Reader]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "empty").mkdir()
    reader = Reader(tmp_path / "empty", workshop, port)
    (workshop.bin / "pytest").write_text(f"#!{workshop.bin / 'python'}\nimport pytest\nraise SystemExit(pytest.main())\n")
    (workshop.bin / "pytest").chmod(0o755)
    yield reader
    for server in reader.servers:
        server.terminate()
        server.wait(30)


@pytest.mark.timeout(600)
def test_the_tutorial_works_and_ends_with_the_example(repository: Path, reader: Reader) -> None:
    steps = blocks((repository / "plugins" / "README.md").read_text())
    assert {language for language, _ in steps} == {"python", "sh", "diff", "text"}
    for (language, content), (_, following) in zip(steps, [*steps[1:], ("", "")], strict=True):
        reader.do(language, content, fails=following.startswith("FAIL") or "\nFAIL" in following)
    package, example = reader.folder / "actorllm-brook", repository / "examples" / "plugin_package"
    written, kept = texts(package), texts(example)
    assert written.keys() == kept.keys()
    assert not [name for name in written.keys() - WRITTEN_ELSEWHERE if written[name] != kept[name]]
    reader.installation.run("python", "-m", "pip", "uninstall", "--yes", "--quiet", "actorllm-brook")


def texts(package: Path) -> dict[str, str]:
    """The files of a package by their paths."""
    caches = {"__pycache__", ".pytest_cache", ".ruff_cache"}
    files = [path for path in package.rglob("*") if path.is_file() and not caches & set(path.parts)]
    return {str(path.relative_to(package)): path.read_text() for path in files}


def test_a_diff_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one\ntwo\n")
    with pytest.raises(AssertionError, match=r"a\.py has this 0 times"):
        apply_diff("--- a.py\n one\n-three\n+four\n", tmp_path)
    apply_diff("--- a.py\n one\n-two\n+four\n", tmp_path)
    assert (tmp_path / "a.py").read_text() == "one\nfour\n"
