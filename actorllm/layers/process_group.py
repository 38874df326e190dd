"""Collectives of ranks that are threads, processes or hosts, by torch.distributed (gloo on CPU, NCCL on GPUs).

Each rank owns a process group object of its own, so several ranks and models share one process: there is no
`init_process_group`. Ranks meet in a store, a `HashStore` within a process or a `TCPStore` between hosts.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import distributed_c10d as c10d


class ProcessGroup:
    """One rank's end of a c10d group object (`ProcessGroupGloo`, `ProcessGroupNCCL`), behind the interface of
    `Collectives`."""

    def __init__(self, group: Any) -> None:  # torch's stubs give the backends no common type with these calls
        self._group = group

    @classmethod
    def gloo(cls, store: c10d.Store, rank: int, *, num_ranks: int, timeout: float = 120.0) -> "ProcessGroup":
        """Join the group of `store`; waits until all ranks have. A call that takes `timeout` seconds raises."""
        limit = timedelta(seconds=timeout)
        return cls(c10d.ProcessGroupGloo(c10d.PrefixStore("actorllm", store), rank, num_ranks, limit))

    @classmethod
    def nccl(cls, store: c10d.Store, rank: int, *, num_ranks: int, timeout: float = 120.0) -> "ProcessGroup":
        """Join the group of `store` with this thread's CUDA device, which no other rank may have; needs a CUDA build of torch."""
        options = c10d.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=timeout)
        return cls(c10d.ProcessGroupNCCL(c10d.PrefixStore("actorllm", store), rank, num_ranks, options))

    def all_reduce(self, value: Tensor) -> Tensor:
        value = value.contiguous()
        self._group.allreduce([value]).wait()
        return value

    def all_gather(self, value: Tensor, sizes: Sequence[int]) -> Tensor:
        shape, largest = value.shape[:-1], max(sizes)
        padded = torch.nn.functional.pad(value, (0, largest - value.shape[-1]))  # c10d gathers equal sizes only
        parts = [value.new_empty(*shape, largest) for _ in sizes]
        self._group.allgather([parts], [padded.contiguous()]).wait()
        return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], dim=-1)

    def broadcast(self, value: Tensor) -> Tensor:
        value = value.contiguous()
        self._group.broadcast([value], c10d.BroadcastOptions()).wait()
        return value
