"""The C++ library: compiled once, found again, safe between processes, and dispensable."""

import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actorllm_kernels import attention, native
from actorllm_kernels.attention import cpu
from tests.kernels.ragged_pool import Pool

NUM_CALLS = len(list(native.SOURCES.glob("*.cpp"))) + 1
"""Of the compiler: one a source, and one that joins them."""
LOAD = "from actorllm_kernels.native import library; print(library()._name)"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of compiled kernels, and a library that nobody has loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield native.cache_folder()
    native.library.cache_clear()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes down that it was called, and copies a library that is there already."""
    if (made := native.library()) is None:
        pytest.skip("needs a C++ compiler")
    script = tmp_path / "compiler"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo fake && exit\necho called >> {tmp_path}/calls\nsleep 0.1\n'
        f'while [ "$1" != -o ]; do shift; done\ncp {made._name} "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return tmp_path / "calls"


def test_is_compiled_once(compiler: Path, cache: Path) -> None:
    first = native.library()
    native.library.cache_clear()
    second = native.library()
    assert first is not None and second is not None and first._name == second._name
    assert compiler.read_text().count("called") == NUM_CALLS
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_says_that_it_compiles(compiler: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    native.library()
    native.library.cache_clear()
    native.library()
    [message] = [record.message for record in caplog.records if record.name == native.__name__ and record.levelno >= logging.WARNING]
    assert f"compiling {NUM_CALLS - 1} files" in message and "once" in message


def truncated(path: Path) -> None:
    os.truncate(path, 1000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    """A library of another compilation, without an entry point of ours."""
    source = path.with_suffix(".cpp")
    source.write_text("int nothing;")
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(path)], check=True, timeout=60)
    source.unlink()


@pytest.mark.parametrize("damage", [truncated, emptied, foreign])
def test_a_damaged_library_is_compiled_anew(compiler: Path, cache: Path, damage, caplog: pytest.LogCaptureFixture) -> None:
    """To load one would end the process with a bus error, or fail at its first call."""
    native.library()
    [path] = cache.iterdir()
    whole = path.read_bytes()
    path.unlink()  # this process has loaded it: its bytes may not change
    path.write_bytes(whole)
    damage(path)
    subprocess.run([sys.executable, "-c", f"{LOAD}; library().actorllm_linear_int8"], check=True, timeout=60)
    assert [kept.read_bytes() for kept in cache.iterdir()] == [whole]
    damage(path)
    native.library.cache_clear()
    caplog.clear()
    assert native.library() is not None
    assert "damaged" in caplog.records[0].message and "compiling" in caplog.records[1].message
    assert compiler.read_text().count("called") == 3 * NUM_CALLS


def test_what_was_compiled_but_cannot_be_loaded_says_so(compiler: Path, cache: Path, caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not compiled again: that would not help."""
    script = Path(os.environ["CXX"])
    script.write_text(re.sub(r"\ncp \S+ ", "\ncp /bin/sh ", script.read_text()))
    for _ in range(2):
        assert native.library() is None
        native.library.cache_clear()
    messages = [record.message for record in caplog.records if "slower" in record.message]
    assert len(messages) == 2 and all("cannot be loaded" in message and str(cache) in message for message in messages)
    assert compiler.read_text().count("called") == NUM_CALLS


def test_the_compiler_may_be_a_command_of_several_words(compiler: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"env {os.environ['CXX']}")
    assert native.library() is not None
    assert compiler.read_text().count("called") == NUM_CALLS


@pytest.mark.parametrize("variable", ["CXX", "ACTORLLM_CXXFLAGS"])
def test_a_quote_without_its_end_is_told(variable: str, compiler: Path, cache: Path, caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, 'g++ "-O2')
    assert native.library() is None
    assert f"{variable} is 'g++ \"-O2'" in caplog.text and "slower" in caplog.text


@pytest.mark.parametrize(("before", "variables"), [
    pytest.param("import pwd\ndef unknown(*_): raise KeyError\npwd.getpwuid = unknown\n", {}, id="a user whom the system does not know"),
    pytest.param("", {"HOME": "/dev/null"}, id="no folder"),
    pytest.param("", {"XDG_CACHE_HOME": "/dev/null"}, id="no cache folder"),
    pytest.param("import os\nos.access = lambda *_: False\n", {"HOME": "{}/home"}, id="not to be written"),
])  # fmt: skip
def test_without_a_folder_the_library_lasts_as_long_as_the_process(before: str, variables, compiler: Path, cache: Path, tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {name: value.format(tmp_path) for name, value in variables.items()}
    made = subprocess.run([sys.executable, "-c", before + LOAD], env=environment, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0 and "set XDG_CACHE_HOME" in made.stderr, made.stderr
    assert made.stdout.strip().endswith(".so") and not Path(made.stdout.strip()).parent.exists()


PORTABLE = """
import torch
from actorllm_kernels.linear import Bf16, Int4, Int8, cpu, reference
x, w = torch.randn(9, 300), torch.randn(50, 300)
assert cpu.suits(x)
for form, name in ((Bf16(), "linear_bf16"), (Int8(), "linear_int8"), (Int4(), "linear_int4")):
    packed = form.pack(form.codes(w))
    torch.testing.assert_close(getattr(cpu, name)(x, *packed, 50), getattr(reference, name)(x, *packed, 50), atol=1e-3, rtol=1e-4)
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_flags_can_be_added(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the paths for machines without vector instructions compute, too."""
    monkeypatch.setenv("ACTORLLM_CXXFLAGS", "-O1" + " -march=x86-64" * (platform.machine() == "x86_64"))
    subprocess.run([sys.executable, "-c", PORTABLE], timeout=110, check=True)
    assert len(list(cache.glob("*.so"))) == 1


def test_two_processes_at_once(compiler: Path, cache: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    names = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0] and len(names) == 1
    assert len(list(cache.iterdir())) == 1


def test_another_source_is_another_library(compiler: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.library()
    changed = tmp_path / "cpp"
    changed.mkdir()
    (changed / "attention.cpp").write_text("// changed")
    monkeypatch.setattr(native, "SOURCES", changed)
    native.library.cache_clear()
    native.library()
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("compiler_name", ["false", "/does/not/exist"])
def test_without_a_compiler_the_reference_runs(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog, compiler_name: str) -> None:
    pool = Pool([(3, 9)], 4, 2)
    expected = pool.expected()
    monkeypatch.setenv("CXX", compiler_name)
    with caplog.at_level(logging.WARNING):
        got = pool.attend(attention)
        pool.attend(attention)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert not cpu.suits(got, pool.k, pool.v)
    assert [record.message for record in caplog.records if "slower" in record.message] == [caplog.records[0].message]
