"""How Triton kernels are cut for a GPU (tile sizes, warps, stages): data, keyed by kernel, shape, GPU and Triton's version.

The shipped file was chosen by reasoning about registers and shared memory. `store` keeps what was measured on this
machine in a file in the user's cache, which goes first. Where a key is absent the nearest one serves. Knows no kernel.
"""

import contextlib
import functools
import json
import logging
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actorllm_kernels.native import cache_folder

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "configurations.json"
SHARED_KIB = {
    "sm_80": 163, "sm_86": 99, "sm_87": 163, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_103": 227, "sm_110": 227, "sm_120": 99,
    "sm_121": 99,
}  # fmt: skip
"""Shared memory that a program may have, by compute capability, from 8.0 on as Triton supports (CUDA's programming guide)."""
LEAST_SHARED_KIB = min(SHARED_KIB.values())
"""Of a GPU that is not listed."""
PADDED = frozenset({"head_dim"})
"""Sizes that tiles hold up to the next power of two: by that they take registers and shared memory."""
OTHER_GPU = 100.0
"""Distance: any shape on this GPU is nearer than a like shape on another one."""

Sizes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Configuration:
    """The choices for one kernel: sizes of its tiles by name, and the compiler's options.

    `max_registers` of a thread say how many programs are to lie on a multiprocessor at once. Where it is None the assembler
    chooses, and spills a few values if that lets one more program lie there.
    """

    blocks: Sizes
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def block(self, name: str) -> int:
        """The size of tile `name`."""
        return dict(self.blocks)[name]


@dataclass(frozen=True)
class Key:
    """What a configuration was chosen for: `shape` holds the sizes that matter to the kernel, `gpu` is its "sm_90".

    `model` is the GPU that it was measured on ("NVIDIA H200"): those of one capability differ in memory and processors. What is
    shipped is for all of them, "".
    """

    kernel: str
    shape: Sizes
    gpu: str
    triton: str
    model: str = ""

    @property
    def shared_kib(self) -> int:
        """Shared memory that a program may have on this GPU."""
        return SHARED_KIB.get(self.gpu, LEAST_SHARED_KIB)

    def distance(self, other: "Key") -> float:
        """How unlike `other` is: by the ratio of each size, of what tiles are padded to, and of both GPUs' shared memory.

        Infinite where it cannot stand for this key: with other sizes, or chosen for a GPU that has more shared memory.
        """
        mine, theirs = dict(self.shape), dict(other.shape)
        if self.kernel != other.kernel or mine.keys() != theirs.keys():
            return math.inf
        shape = sum(abs(math.log2(mine[name] / theirs[name])) for name in mine)
        shape += sum(abs((mine[name] - 1).bit_length() - (theirs[name] - 1).bit_length()) for name in PADDED & mine.keys())
        if self.gpu == other.gpu:
            return shape
        if self.shared_kib < other.shared_kib:
            return math.inf
        return shape + OTHER_GPU * (1 + math.log2(self.shared_kib / other.shared_kib))


@functools.cache
def configuration(key: Key) -> Configuration:
    """The nearest one there is; the user's before a shipped one that is as near. Raises `KeyError` for an unknown kernel."""
    measured = read(user_file())
    known = {**read(SHIPPED), **measured}
    return known[nearest(key, known, first=measured)]


def nearest(key: Key, known: Collection[Key], *, first: Collection[Key] = ()) -> Key:
    """The one that is least unlike: of several one for the same model of GPU, of these one of `first`, of these one for the same
    Triton, of these the last.

    So what was measured goes on to serve when Triton is replaced. Raises `KeyError` where none can stand for `key`.
    """

    def rank(other: Key) -> tuple[float, bool, bool, bool]:
        return key.distance(other), other.model != key.model, other not in first, other.triton != key.triton

    found = min(reversed([*known]), key=rank)
    if math.isinf(key.distance(found)):
        raise KeyError(f"no configuration for kernel {key.kernel} with {[name for name, _ in key.shape]}")
    return found


def user_file() -> Path:
    """Where measured configurations of this machine are kept."""
    return cache_folder() / "configurations.json"


def store(key: Key, chosen: Configuration) -> None:
    """Keep a measured configuration in the user's cache, in place of an older one for the same key; other processes may do so, too."""
    path = user_file()
    with _locked(path.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        made.write_text(text_of({**read(path), key: chosen}))
        made.replace(path)
    configuration.cache_clear()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Meanwhile no other process is in here with the same file."""
    import fcntl  # there is none on Windows, where shipped configurations serve

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(path: Path) -> dict[Key, Configuration]:
    """The configurations of a file; none where there is no file, and with a warning where it, or one of its entries, cannot be
    used: others serve then."""
    known = {}
    try:
        entries = json.loads(path.read_text())
        if not isinstance(entries, list):
            raise ValueError("not a list")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s is not read, the shipped configurations of kernels serve: %r", path, error)
        return {}
    for entry in entries:
        try:
            key, chosen = _parsed(entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s: an entry is not read, another configuration serves (%r): %s", path, error, json.dumps(entry))
        else:
            known[key] = chosen
    return known


def text_of(known: Mapping[Key, Configuration]) -> str:
    """A file of configurations: sorted, one in a line."""
    entries = sorted(known.items(), key=lambda each: (each[0].kernel, each[0].gpu, each[0].shape, each[0].triton, each[0].model))
    return "[\n" + ",\n".join(json.dumps(_entry(*each)) for each in entries) + "\n]\n"


def _parsed(entry: dict[str, Any]) -> tuple[Key, Configuration]:
    """Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` for what no kernel could be cut by."""
    named = [entry[name] for name in ("kernel", "gpu", "triton")]
    shape, blocks = (tuple(sorted(entry[name].items())) for name in ("shape", "blocks"))
    options = [entry["num_warps"], entry["num_stages"], entry.get("max_registers")]
    if not all(isinstance(text, str) for text in (*named, entry.get("model", ""))):
        raise ValueError("kernel, gpu, triton and model are texts")
    sizes = [size for _, size in (*shape, *blocks)] + [each for each in options if each is not None]
    if None in options[:2] or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError("sizes are whole numbers from 1 on")
    if any(size & (size - 1) for size in (options[0], *dict(blocks).values())):
        raise ValueError("blocks and warps are powers of two")
    if {name for name, _ in blocks} != _block_names()[entry["kernel"]]:
        raise ValueError(f"the blocks of {entry['kernel']} are {sorted(_block_names()[entry['kernel']])}")
    return Key(named[0], shape, named[1], named[2], entry.get("model", "")), Configuration(blocks, *options)


@functools.cache
def _block_names() -> dict[str, set[str]]:
    """By kernel: what is shipped has them all."""
    return {entry["kernel"]: {*entry["blocks"]} for entry in json.loads(SHIPPED.read_text())}


def _entry(key: Key, chosen: Configuration) -> dict[str, Any]:
    entry = {**vars(key), "shape": dict(key.shape), **vars(chosen), "blocks": dict(chosen.blocks)}
    return {name: value for name, value in entry.items() if value not in (None, "")}
