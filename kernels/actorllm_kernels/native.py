"""The C++ kernels: compiled on the machine they run on, on first use, and kept for later starts.

Plain C++ with `extern "C"` entry points, called through ctypes, which releases the GIL. The library's name in the cache
holds a hash of the sources, the compiler, its flags and the processor's features, so an old one is never taken for a
new one, and a hash of the file itself, so a damaged one is made anew: to load it would end the process. It is written
beside and renamed, so two processes that start at once cannot disturb each other. Without a compiler, or where it
fails, there is no library, and a warning says so once. `CXX` is the compiler's command (`ccache g++`), `ACTORLLM_CXXFLAGS`
adds flags at the end: `-march=x86-64` for the portable paths, `-fsanitize=address,undefined` for the sanitizers. Knows
no operator.
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


WITHOUT_KERNELS = "models on this CPU run several times slower"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels of this machine, compiled if they are not in the cache; None, with a warning, where that cannot be done."""
    try:
        compiler = _words_of("CXX") or [*filter(None, map(shutil.which, COMPILERS))][:1]
        if not compiler:
            logger.warning("no C++ compiler found: %s; install g++ or clang++", WITHOUT_KERNELS)
            return None
        path = _compiled(compiler, cache_folder())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        logger.warning("the C++ kernels could not be compiled, %s: %s", WITHOUT_KERNELS, detail[-2000:])
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        logger.warning("the C++ kernels were compiled, but cannot be loaded, %s: %s", WITHOUT_KERNELS, error)
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
    """Where compiled kernels and their configurations lie, which exists then: under `XDG_CACHE_HOME`, or ~/.cache; where neither can be
    made, as for a user without a home, where this process alone looks."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(root or Path.home() / ".cache") / "actorllm" / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return _own_folder()
    return folder


def _own_folder() -> Path:
    return Path(_temporary_folder().name)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    logger.warning(
        "this user has no cache folder that can be written, so nothing is kept there for later starts, as kernels that were compiled or "
        "tuned: set XDG_CACHE_HOME to one"
    )
    return tempfile.TemporaryDirectory(prefix="actorllm-")


def _words_of(variable: str) -> list[str]:
    """The words of a command line in the environment. Raises `ValueError`."""
    text = os.environ.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{variable} is {text!r}, which is no command line ({error})") from error


def _compiled(compiler: Sequence[str], folder: Path) -> Path:
    """The library's file, whole. Raises `OSError`, `ValueError` or `subprocess.SubprocessError`."""
    flags = _words_of("ACTORLLM_CXXFLAGS")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS).stdout
    features = _processor_features()
    tiles = () if _may_use_tiles(features) else WITHOUT_TILES
    command = [*compiler, *FLAGS, *tiles, *flags]
    parts = [version, *command[1:], features, *(path.read_text() for path in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]))]
    key = hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]
    found = sorted(folder.glob(f"{key}-*.so"))
    if (whole := next(filter(_is_whole, found), None)) is not None:
        return whole
    if found:
        logger.warning("the compiled C++ kernels in %s are damaged: they are compiled anew", folder)
    if not os.access(folder, os.W_OK):  # as one that came with an image, for another processor
        folder, found = _own_folder(), []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        made = Path(name) / "kernels.so"
        _compile(command, sorted(SOURCES.glob("*.cpp")), made)
        with made.open("rb+") as file:
            os.fsync(file.fileno())  # else a machine that stops may leave the name without the bytes
        path = folder / f"{key}-{_digest(made)}.so"
        made.replace(path)
    for damaged in found:
        if damaged != path:
            damaged.unlink(missing_ok=True)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _is_whole(path: Path) -> bool:
    """Whether the file can be read, and is the one that was compiled, by the end of its name."""
    try:
        return path.stem.endswith(f"-{_digest(path)}")
    except OSError:
        return False


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
