"""Which part of a model one rank holds, and how it talks to the others.

A `Shard` is passed to every layer that splits; there is no module-level context, because several ranks and
models share one process. Knows no model and no checkpoint.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from actorllm.layers.collectives import Collectives, SingleRank


@dataclass(frozen=True)
class Shard:
    """Rank `rank` of `num_ranks` with the collectives that join them."""

    rank: int = 0
    num_ranks: int = 1
    collectives: Collectives = field(default_factory=SingleRank)

    def span(self, size: int, *, unit: int = 1) -> tuple[int, int]:
        """This rank's contiguous part `[start, end)` of `size` elements, cut at multiples of `unit`.

        Parts differ by at most one unit; the first ranks take the larger ones.
        """
        return self.spans(size, unit=unit)[self.rank]

    def spans(self, size: int, *, unit: int = 1) -> list[tuple[int, int]]:
        """The `span` of every rank."""
        share, extra = divmod(-(-size // unit), self.num_ranks)
        starts = [rank * share + min(rank, extra) for rank in range(self.num_ranks + 1)]
        return [(min(start * unit, size), min(end * unit, size)) for start, end in pairwise(starts)]
