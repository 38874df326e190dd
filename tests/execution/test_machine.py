"""Limits of a container are read from fake /proc and /sys trees."""

import os
from pathlib import Path

import pytest

from actorllm.execution.machine import Machine, default_kv_bytes

GIB = 2**30


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def tree(root: Path, files: dict[str, str]) -> Machine:
    meminfo = f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {10 * GIB // 1024} kB\nHugePages_Total: 0\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine(root)


def test_without_limits_the_whole_machine_counts(tmp_path: Path) -> None:
    machine = tree(tmp_path, {})
    assert machine.num_threads() == 8
    assert machine.memory_limit() == 16 * GIB
    assert machine.memory_available() == 10 * GIB


def test_cgroup_v2_limits(tmp_path: Path) -> None:
    machine = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/pod/box/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/pod/box/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/pod/box/memory.stat": f"anon {GIB}\ninactive_file {GIB}\n",
            "sys/fs/cgroup/pod/memory.max": "max\n",
        },
    )
    assert machine.num_threads() == 2
    assert machine.memory_limit() == 4 * GIB
    assert machine.memory_available() == 2 * GIB


def test_cgroup_v1_limits(tmp_path: Path) -> None:
    machine = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/box\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB}\n",
        },
    )
    assert machine.num_threads() == 1, "half a processor is still one thread"
    assert machine.memory_limit() == 2 * GIB
    assert machine.memory_available() == GIB


def test_cgroup_v1_without_a_limit(tmp_path: Path) -> None:
    machine = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert machine.num_threads() == 8
    assert machine.memory_limit() == 16 * GIB


def test_this_machine_has_limits() -> None:
    machine = Machine()
    assert machine.num_threads() >= 1
    assert 0 < machine.memory_available() <= machine.memory_limit()


@pytest.mark.parametrize(("wanted", "expected"), [(100, 100), (10**12, 500)])
def test_the_kv_cache_takes_what_it_needs_and_never_more_than_its_share(wanted: int, expected: int) -> None:
    assert default_kv_bytes(1000, wanted=wanted) == expected
