"""The C++ library: compiled once, found again, safe between processes, and dispensable."""

import logging
import platform
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


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("g++") is None, reason="needs g++ on x86-64")
@pytest.mark.parametrize("architecture", ["x86-64", "x86-64-v3", "icelake-server", "alderlake"])
def test_every_path_compiles(architecture: str, tmp_path: Path) -> None:
    """Without vectors' intrinsics, with AVX2, with AVX-512 VNNI, and with AVX VNNI."""
    flags = [flag for flag in native.FLAGS if flag not in ("-O3", "-march=native")]
    for source in native.SOURCES.glob("linear_int?.cpp"), native.SOURCES.glob("attention.cpp"):
        command = ["g++", *flags, "-O0", "-Werror=return-type", f"-march={architecture}", "-c", *map(str, source)]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=110)


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
