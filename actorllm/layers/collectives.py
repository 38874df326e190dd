"""What tensor-parallel ranks do together: sum, gather, broadcast.

`SingleRank` is the trivial case, `ThreadRanks` joins ranks that are threads of one process by a reduction in
memory behind a barrier, `ProcessGroup` (process_group.py) puts torch.distributed behind the same interface. Every call
is collective: all ranks make the same calls in the same order. A rank that fails breaks the barrier, so that no
other rank waits forever.
"""

import threading
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Collectives(Protocol):
    """The operations that layers use. Inputs have the same shape on every rank unless said otherwise."""

    def all_reduce(self, value: Tensor) -> Tensor:
        """The sum over ranks; may write into `value`."""
        ...

    def all_gather(self, value: Tensor, sizes: Sequence[int]) -> Tensor:
        """The ranks' values joined along the last axis in rank order; `sizes[r]` is rank r's last size."""
        ...

    def broadcast(self, value: Tensor) -> Tensor:
        """Rank 0's value."""
        ...


class SingleRank:
    """One rank: every collective is the identity."""

    def all_reduce(self, value: Tensor) -> Tensor:
        return value

    def all_gather(self, value: Tensor, sizes: Sequence[int]) -> Tensor:
        return value

    def broadcast(self, value: Tensor) -> Tensor:
        return value


class _Meeting:
    """What the thread ranks share: a barrier and a place for each rank's value."""

    def __init__(self, num_ranks: int, timeout: float) -> None:
        self.barrier = threading.Barrier(num_ranks, timeout=timeout)
        self.values: list[Tensor | None] = [None] * num_ranks


class ThreadRanks:
    """One rank's end of an in-memory collective between threads of one process.

    Values are summed in rank order on every rank, so all ranks get identical bits. A rank that waits longer than
    `timeout` seconds, or whose peer called `abort`, gets `threading.BrokenBarrierError`; waits release the GIL.
    """

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self._rank = rank
        self._meeting = meeting

    @classmethod
    def group(cls, num_ranks: int, *, timeout: float = 120.0) -> list["ThreadRanks"]:
        """All ends of one group, one per rank."""
        meeting = _Meeting(num_ranks, timeout)
        return [cls(rank, meeting) for rank in range(num_ranks)]

    def all_reduce(self, value: Tensor) -> Tensor:
        values = self._exchange(value)
        total = values[0].clone()
        for other in values[1:]:
            total += other
        self._meeting.barrier.wait()  # nobody reuses its value while another still reads it
        return total

    def all_gather(self, value: Tensor, sizes: Sequence[int]) -> Tensor:
        joined = torch.cat(self._exchange(value), dim=-1)
        self._meeting.barrier.wait()
        return joined

    def broadcast(self, value: Tensor) -> Tensor:
        first = self._exchange(value)[0].clone()
        self._meeting.barrier.wait()
        return first

    def abort(self) -> None:
        """Break the barrier: every waiting and later call of any rank raises until `reset`."""
        self._meeting.barrier.abort()

    def reset(self) -> None:
        """Make the group usable again after `abort`; no rank may be inside a collective."""
        self._meeting.barrier.reset()

    def _exchange(self, value: Tensor) -> list[Tensor]:
        self._meeting.values[self._rank] = value
        self._meeting.barrier.wait()
        return [other for other in self._meeting.values if other is not None]
