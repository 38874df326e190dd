"""The pool of a CPU takes memory only for slots that were written to."""

import sys
from pathlib import Path

import pytest
import torch

from actorllm.execution.kv_pool import KVPool
from actorllm.models.contract import CacheBuffer, CacheGroup

NUM_SLOTS = 2**15


def held_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
def test_slots_take_memory_once_they_are_written_to(kv_dtype: torch.dtype | None) -> None:
    group = CacheGroup("all", (0, 1), (CacheBuffer("keys", (8, 64)), CacheBuffer("values", (8, 64))))
    before = held_bytes()
    pool = KVPool([group], [NUM_SLOTS], dtype=torch.float32, device=torch.device("cpu"), kv_dtype=kv_dtype)
    assert held_bytes() - before < pool.num_bytes() / 8
    keys = pool.buffer(0, 0, "keys")
    assert not keys[-8:].any()
    keys.fill_(1)
    assert held_bytes() - before > keys.nbytes / 2
