"""What this process may use of the machine: processors and memory, as the container's limits allow.

Reads cgroup v2 and v1, the scheduler's affinity and /proc; where these are absent (macOS) it asks the operating system.
Knows nothing of models and of torch.
"""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

KV_SHARE = 0.5
"""The part of the free memory that the KV cache may take: the rest is for activations, the tokenizer, the page cache."""


def default_kv_bytes(available: int, *, wanted: int, share: float = KV_SHARE) -> int:
    """Bytes for the KV cache when the user names none.

    The rule: what the full load needs (`wanted`: every row that may run, each with a whole context), but never
    more than `share` of the memory that is `available` once the weights are loaded.
    """
    return max(0, min(wanted, int(available * share)))


def give_back_freed_memory() -> None:
    """What was freed but is kept for later allocations goes back to the system, where the C library can do that (glibc)."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


@dataclass(frozen=True)
class Machine:
    """The machine behind `root` (another folder than `/` in tests)."""

    root: Path = Path("/")

    def num_threads(self) -> int:
        """Processors this process may use: its affinity, and the whole processors in every cgroup's quota above it."""
        count = self._num_processors()
        for folder in self._cgroup_folders("cpu"):
            quota = _cpu_quota(folder)
            if quota is not None:
                count = min(count, int(quota))
        return max(1, count)

    def memory_limit(self) -> int:
        """Bytes this process may ever use: the machine's memory or the smallest cgroup limit."""
        limits = [limit for limit, _ in self._memory_limits()]
        return min([self._total_memory(), *limits])

    def memory_available(self) -> int:
        """Bytes this process may still take now. File cache that the kernel can drop counts as available; where the
        system does not say what is free (macOS), half of the memory is taken to be."""
        free = [max(0, limit - used) for limit, used in self._memory_limits()]
        available = self._meminfo().get("MemAvailable", self._total_memory() // 2)
        return min([available, *free])

    def _num_processors(self) -> int:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    def _total_memory(self) -> int:
        total = self._meminfo().get("MemTotal")
        return total if total is not None else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def _meminfo(self) -> dict[str, int]:
        """/proc/meminfo in bytes; empty where there is none."""
        lines = (_read(self.root / "proc/meminfo") or "").splitlines()
        fields = (line.split() for line in lines)
        return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in fields if len(parts) == 3}

    def _cgroup_folders(self, controller: str) -> list[Path]:
        """The folders whose limits hold for `controller`: this process's cgroup and every one above it."""
        folders: list[Path] = []
        for line in (_read(self.root / "proc/self/cgroup") or "").splitlines():
            _, controllers, path = line.split(":", 2)
            mount = self.root / "sys/fs/cgroup"
            if controllers:
                if controller not in controllers.split(","):
                    continue
                mount = mount / controller
            parts = [part for part in path.split("/") if part not in ("", "..")]
            folders += [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
        return folders

    def _memory_limits(self) -> list[tuple[int, int]]:
        """(limit, used) in bytes of each cgroup that limits memory; `used` leaves out droppable file cache."""
        found = []
        for folder in self._cgroup_folders("memory"):
            for limit_name, used_name, cache_name in (
                ("memory.max", "memory.current", "inactive_file"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            ):
                limit = _read(folder / limit_name)
                if limit is not None and limit.isdigit():
                    used = int(_read(folder / used_name) or 0) - _memory_stat(folder).get(cache_name, 0)
                    found.append((int(limit), max(0, used)))
        return found


def _cpu_quota(folder: Path) -> float | None:
    """Processors a cgroup may use; None: no limit."""
    both = (_read(folder / "cpu.max") or "").split()
    if not both:
        both = [_read(folder / name) or "" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if len(both) != 2 or not all(value.isdigit() for value in both) or int(both[1]) == 0:
        return None
    return int(both[0]) / int(both[1])


def _memory_stat(folder: Path) -> dict[str, int]:
    lines = (_read(folder / "memory.stat") or "").splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
