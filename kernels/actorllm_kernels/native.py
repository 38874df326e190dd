"""The C++ kernels: compiled on the machine they run on, on first use, and kept for later starts.

Plain C++ with `extern "C"` entry points, called through ctypes, which releases the GIL. The library's name in the cache
holds a hash of the sources, the compiler, its flags and the processor's features, so an old one is never taken for a
new one; it is written beside and renamed, so two processes that start at once cannot disturb each other. Without
a compiler, or where it fails, there is no library, and a warning says so once. Knows no operator.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401 - first: the kernels then share torch's libgomp, which has the same soname

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpp"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip
COMPILE_SECONDS = 300


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels of this machine, compiled if they are not in the cache; None where that cannot be done."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        logger.warning("no C++ compiler found: models on this CPU run several times slower; install g++ or clang++")
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler, cache_folder())))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        logger.warning("the C++ kernels could not be compiled, models on this CPU run several times slower: %s", detail[-2000:])
        return None


@functools.cache
def function(name: str, argument_types: tuple[type, ...]) -> "ctypes._NamedFuncPointer":
    """An entry point of the library, which must exist; it returns nothing."""
    kernels = library()
    assert kernels is not None, "ask `library` first"
    found = kernels[name]
    found.argtypes, found.restype = argument_types, None
    return found


def cache_folder() -> Path:
    """Where compiled kernels lie: under `XDG_CACHE_HOME`, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "actorllm" / "kernels"


def _compiled(compiler: str, folder: Path) -> Path:
    """The library's file. Raises `OSError` or `subprocess.SubprocessError`."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS).stdout
    sources = sorted(SOURCES.glob("*.cpp"))
    parts = [version, *FLAGS, _processor_features(), *(path.read_text() for path in sorted(SOURCES.iterdir()))]
    path = folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("compiling the CPU kernels for this machine, once")
        with tempfile.TemporaryDirectory(dir=folder) as name:
            made = Path(name) / path.name
            command = [compiler, *FLAGS, *map(str, sources), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS)
            made.replace(path)
    return path


def _processor_features() -> str:
    """What `-march=native` depends on: a cache may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "") + platform.machine()
