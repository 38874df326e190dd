"""The least that a model needs to compute: a cache, batches cut by hand, and ranks that are threads.

For tests of layers and plugins; no scheduler, no runner. The cache helps to find faults: what was never written, or has
fallen behind a window, is NaN, and slots are handed out in a shuffled order.

Legend: T tokens, V vocabulary.
"""

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from actorllm.execution.forward import forward
from actorllm.execution.kv_pool import KVPool
from actorllm.layers.batch import Batch, Span
from actorllm.layers.collectives import Collectives, ThreadRanks
from actorllm.layers.shard import Shard
from actorllm.models.contract import CacheGroup, CausalLM

T = TypeVar("T")
Chunk = tuple[int, Sequence[int]]


class TinyCache:
    """A `KVCache` with its slot tables, for `num_rows` sequences of at most `context` tokens each.

    `lens[row]` is how many tokens a sequence has so far. `seed` shuffles the slots; `kv_dtype` is as `KVPool`'s.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        *,
        num_rows: int = 4,
        context: int = 128,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._groups = tuple(group for group in groups if not group.is_state)
        self._device = device
        num_slots = num_rows * context
        slots = [num_slots] * len(self._groups)
        self._pool = KVPool(groups, slots, dtype=dtype, device=torch.device(device), kv_dtype=kv_dtype, num_rows=num_rows)
        for index in range(len(groups)):
            self._make_unreadable(index, slice(None))
        shuffle = random.Random(seed)
        self._free = [shuffle.sample(range(num_slots), num_slots) for _ in self._groups]
        self._tables = tuple(torch.zeros(num_rows, context, dtype=torch.int32, device=device) for _ in self._groups)
        self.lens = [0] * num_rows

    def buffer(self, group: int, layer: int, name: str) -> Tensor:
        """[slots, *shape]."""
        return self._pool.buffer(group, layer, name)

    def scales(self, group: int, layer: int, name: str) -> Tensor | None:
        """[slots, *scale_shape], or None."""
        return self._pool.scales(group, layer, name)

    def batch(self, chunks: Iterable[Chunk]) -> Batch:
        """A flat batch that appends each `(row, token ids)` to its sequence; a row comes at most once."""
        ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        written: list[list[int]] = [[] for _ in self._groups]
        for row, tokens in chunks:
            begin, end = self.lens[row], self.lens[row] + len(tokens)
            for group, slots in enumerate(written):
                self._drop_behind_window(group, row)
                taken = [self._free[group].pop() for _ in tokens]
                self._tables[group][row, begin:end] = torch.tensor(taken, dtype=torch.int32, device=self._device)
                slots += taken
            spans.append(Span(row, len(ids), len(tokens), end))
            ids += tokens
            positions += range(begin, end)
            self.lens[row] = end
        return Batch(
            token_ids_T=self._longs(ids),
            positions_T=self._longs(positions),
            rows_T=self._longs([span.row for span in spans for _ in range(span.query_len)]),
            spans=tuple(spans),
            write_slots_T=tuple(self._longs(slots) for slots in written),
            slot_tables=self._tables,
            cache=self,
        )

    def _drop_behind_window(self, group: int, row: int) -> None:
        """Make unreadable what no later query of the row may see."""
        window = self._groups[group].window
        gone = 0 if window is None else max(0, self.lens[row] - window + 1)
        self._make_unreadable(group, self._tables[group][row, :gone].long())

    def _make_unreadable(self, group: int, slots: Tensor | slice) -> None:
        """NaN in place of values, or of their scales."""
        for tensor in self._pool.tensors(group):
            if tensor.dtype != torch.int8:
                tensor[slots] = torch.nan

    def _longs(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


@torch.inference_mode()
def logits_of(model: CausalLM, cache: TinyCache, chunks: Iterable[Chunk]) -> Tensor:
    """[T, V] logits after each token of the chunks, which are appended to the cache's sequences."""
    return model.head(model.norm(forward(model, cache.batch(chunks))))


def logits_in_chunks(
    model: CausalLM,
    ids: Sequence[int],
    *,
    sizes: Iterable[int] = (),
    row: int = 0,
    seed: int = 0,
    kv_dtype: torch.dtype | None = None,
) -> Tensor:
    """[T, V] of one sequence in a fresh cache, fed in chunks of these sizes, then the rest at once."""
    cache = TinyCache(model.cache_groups, num_rows=row + 1, context=len(ids), seed=seed, kv_dtype=kv_dtype)
    parts, begin = [], 0
    for size in (*sizes, len(ids)):
        if chunk := ids[begin : begin + size]:
            parts.append(logits_of(model, cache, [(row, chunk)]))
        begin += size
    return torch.cat(parts)


def on_thread_ranks(num_ranks: int, work: Callable[[Shard], T], *, join: Callable[[int], Collectives] | None = None) -> list[T]:
    """`work(shard)` on each of `num_ranks` threads at once; the results in rank order. Raises the first failure.

    `join(rank)`, called on the rank's thread, gives other collectives than those in memory.
    """
    ends = ThreadRanks.group(num_ranks, timeout=60.0)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Shard(rank, num_ranks, join(rank) if join else ends[rank]))
        except BaseException as error:  # boundary: device thread
            errors.append(error)
            ends[rank].abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(num_ranks)]
