"""How Triton kernels are cut for a GPU (tile sizes, warps, stages): data, keyed by kernel, shape, GPU and Triton's version.

The shipped file was chosen by reasoning about registers and shared memory. `store` keeps what was measured on this
machine in a file in the user's cache, which goes first. Where a key is absent the nearest one serves. Knows no kernel.
"""

import functools
import json
import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actorllm_kernels.native import cache_folder

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "configurations.json"
OTHER_GPU = 100.0
OTHER_TRITON = 0.01
"""Distances: any shape on this GPU is nearer than a like shape on another one; another version of Triton matters least."""

Sizes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Configuration:
    """The choices for one kernel: sizes of its tiles by name, and the compiler's options."""

    blocks: Sizes
    num_warps: int
    num_stages: int

    def block(self, name: str) -> int:
        """The size of tile `name`."""
        return dict(self.blocks)[name]


@dataclass(frozen=True)
class Key:
    """What a configuration was chosen for: `shape` holds the sizes that matter to the kernel, `gpu` is its "sm_90"."""

    kernel: str
    shape: Sizes
    gpu: str
    triton: str

    def distance(self, other: "Key") -> float:
        """How unlike two keys are: by the ratio of each size, infinite where they cannot stand for each other."""
        mine, theirs = dict(self.shape), dict(other.shape)
        if self.kernel != other.kernel or mine.keys() != theirs.keys():
            return math.inf
        shape = sum(abs(math.log2(mine[name] / theirs[name])) for name in mine)
        return shape + OTHER_GPU * (self.gpu != other.gpu) + OTHER_TRITON * (self.triton != other.triton)


@functools.cache
def configuration(key: Key) -> Configuration:
    """The nearest one there is; the user's before a shipped one that is as near. Raises `KeyError` for an unknown kernel."""
    known = {**read(SHIPPED), **read(user_file())}
    return known[nearest(key, known)]


def nearest(key: Key, known: Collection[Key]) -> Key:
    """The one that is least unlike, of several the last. Raises `KeyError` where none can stand for `key`."""
    found = min(reversed([*known]), key=key.distance)
    if math.isinf(key.distance(found)):
        raise KeyError(f"no configuration for kernel {key.kernel} with {[name for name, _ in key.shape]}")
    return found


def user_file() -> Path:
    """Where measured configurations of this machine are kept."""
    return cache_folder() / "configurations.json"


def store(key: Key, chosen: Configuration) -> None:
    """Keep a measured configuration in the user's cache, in place of an older one for the same key."""
    known = {**read(user_file()), key: chosen}
    path = user_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps([_entry(*each) for each in known.items()], indent=1) + "\n")
    beside.replace(path)
    configuration.cache_clear()


def read(path: Path) -> dict[Key, Configuration]:
    """The configurations of a file; none where there is no file, or with a warning where it cannot be read."""
    if not path.exists():
        return {}
    try:
        return dict(map(_parsed, json.loads(path.read_text())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is not read, the shipped configurations of kernels serve: %r", path, error)
        return {}


def _parsed(entry: dict[str, Any]) -> tuple[Key, Configuration]:
    key = Key(entry["kernel"], tuple(sorted(entry["shape"].items())), entry["gpu"], entry["triton"])
    return key, Configuration(tuple(sorted(entry["blocks"].items())), entry["num_warps"], entry["num_stages"])


def _entry(key: Key, chosen: Configuration) -> dict[str, Any]:
    return {**vars(key), "shape": dict(key.shape), **vars(chosen), "blocks": dict(chosen.blocks)}
