"""The C++ kernels: compiled on the machine they run on, on first use, and kept for later starts.

Plain C++ with `extern "C"` entry points, called through ctypes, which releases the GIL. The library's name in the cache
holds a hash of the sources, the compiler, its flags and the processor's features, so an old one is never taken for a
new one; it is written beside and renamed, so two processes that start at once cannot disturb each other. Without
a compiler, or where it fails, there is no library, and a warning says so once. `ACTORLLM_CXXFLAGS` adds flags at the end:
`-march=x86-64` for the portable paths, `-fsanitize=address,undefined` for the sanitizers. Knows no operator.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path

import torch  # noqa: F401 - first: the kernels then share torch's libgomp, which has the same soname

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpp"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip
WITHOUT_TILES = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
COMPILE_SECONDS = 300
SECONDS_EACH = 2.0
"""Of a processor, for one source: what the user is told to expect."""


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


class Kernel:
    """An entry point of the library, which must exist; it returns nothing. Its calls are told to who listens (`noting`)."""

    def __init__(self, name: str, argument_types: tuple[type, ...]) -> None:
        kernels = library()
        assert kernels is not None, "ask `library` first"
        self.name = name
        self.argument_types = argument_types
        self._entry = kernels[name]
        self._entry.argtypes, self._entry.restype = argument_types, None

    def __call__(self, *arguments: int | float | None) -> None:
        self._entry(*arguments)
        if (note := _note.get()) is not None:
            note(self, arguments)


Note = Callable[[Kernel, tuple[int | float | None, ...]], None]
_note: ContextVar[Note | None] = ContextVar("note", default=None)


@functools.cache
def function(name: str, argument_types: tuple[type, ...]) -> Kernel:
    """The entry point `name`."""
    return Kernel(name, argument_types)


@contextlib.contextmanager
def noting(note: Note) -> Iterator[None]:
    """Tell `note` of every call that this thread makes meanwhile, after it was made."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


def cache_folder() -> Path:
    """Where compiled kernels lie: under `XDG_CACHE_HOME`, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "actorllm" / "kernels"


def _compiled(compiler: str, folder: Path) -> Path:
    """The library's file. Raises `OSError` or `subprocess.SubprocessError`."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS).stdout
    features = _processor_features()
    tiles = () if _may_use_tiles(features) else WITHOUT_TILES
    command = [compiler, *FLAGS, *tiles, *shlex.split(os.environ.get("ACTORLLM_CXXFLAGS", ""))]
    parts = [version, *command[1:], features, *(path.read_text() for path in sorted(SOURCES.iterdir()))]
    path = folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            made = Path(name) / path.name
            _compile(command, sorted(SOURCES.glob("*.cpp")), made)
            made.replace(path)
    return path


def _compile(command: Sequence[str], sources: Sequence[Path], made: Path) -> None:
    """One library of all sources, each compiled by a process of its own."""
    began = time.perf_counter()
    num_processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seconds = max(SECONDS_EACH, SECONDS_EACH * len(sources) / num_processes)
    logger.warning("compiling %d files of CPU kernels for this machine, once: about %.0f s", len(sources), seconds)
    objects = [str(made.with_name(f"{source.stem}.o")) for source in sources]

    def run(arguments: Sequence[str]) -> None:
        subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS)

    with ThreadPoolExecutor(num_processes) as pool:
        calls = [["-c", str(source), "-o", file] for source, file in zip(sources, objects, strict=True)]
        list(pool.map(run, calls))
    run(["-shared", *objects, "-o", str(made)])
    logger.info("compiled in %.1f s", time.perf_counter() - began)


def _may_use_tiles(features: str) -> bool:
    """Whether this process may use Intel's AMX, if the processor has it: Linux wants to be asked, once for all threads.

    That is arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) (docs.kernel.org/arch/x86/xstate.html).
    """
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return True
    return "amx_tile" not in features or ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0


def _processor_features() -> str:
    """What `-march=native` depends on: a cache may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "") + platform.machine()
