"""The C++ library: compiled once, found again, safe between processes, and dispensable."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actorllm_kernels import attention, native
from actorllm_kernels.attention import cpu
from tests.kernels.ragged_pool import Pool

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
        f'#!/bin/sh\n[ "$1" = --version ] && echo fake && exit\necho called >> {tmp_path}/calls\nsleep 0.3\n'
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
    assert compiler.read_text().count("called") == 1
    assert [path.suffix for path in cache.iterdir()] == [".so"]


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
