"""From a `Step` message to a `Batch` on the device.

All index arrays of a step travel to the device in one copy. The tables of rows and slots stay there between steps;
a step brings only what changed. Knows no model and no sampling.

Legend: T tokens of the batch, B entries (rows) in it, S samples, R device rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actorllm.execution.kv_pool import SlotTables
from actorllm.execution.sampler import Samples
from actorllm.layers.batch import Batch, KVCache, Span
from actorllm.messages import RowOpen, Step, unpack
from actorllm_kernels.token_ids import gather_ids, scatter_ids

_MINUS_ONE = b"\xff" * 4


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The flat tokens `rows_N` of one entry whose next ids are to be scored, with `width` candidates each."""

    rows_N: Tensor
    next_ids_N: Tensor
    width: int


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step on the device. `sample_tokens_S` are the flat tokens that samples read."""

    batch: Batch
    sample_tokens_S: Tensor
    samples: Samples
    prompts: tuple[PromptTokens, ...]


class StepReader:
    """Turns steps into batches, and keeps each row's last sampled id for the steps that do not know it yet."""

    def __init__(self, cache: KVCache, tables: SlotTables, *, max_running: int, device: torch.device) -> None:
        self._cache = cache
        self._tables = tables
        self._device = device
        self._last_ids_R = torch.zeros(max_running, dtype=torch.int64, device=device)

    def open(self, opened: RowOpen) -> None:
        """A sequence takes a row with the slots that it shares with a sibling."""
        slots = [int32(data).to(self._device) for data in opened.slots]
        self._tables.open(opened.row, opened.prefix_start, slots)

    def read(self, step: Step) -> StepInputs:
        """The step's batch; its tokens are entered into the slot tables."""
        parts = (
            step.token_ids, step.positions, *step.write_slots, step.rows, step.query_lens, step.seq_lens,
            step.sample_rows, step.sample_to, step.sample_positions,
        )  # fmt: skip
        numbers = int32(b"".join(parts)).to(self._device, non_blocking=True).to(torch.int64)
        split = numbers.split([len(part) // 4 for part in parts])
        token_ids_T, positions_T, *slots_T = split[:-6]
        (rows_B, query_lens_B, seq_lens_B, sample_tokens_S, sample_to_S, sample_positions_S) = split[-6:]
        num_tokens = len(token_ids_T)
        rows_T, columns_T = _places(rows_B, query_lens_B, seq_lens_B=seq_lens_B, num_tokens=num_tokens)
        if _MINUS_ONE in step.token_ids:  # or, rarely, in two neighbours' bytes, which changes nothing
            token_ids_T = gather_ids(token_ids_T, rows_T, self._last_ids_R)
        self._tables.write(rows_T, columns_T, slots_T)
        spans = _spans(unpack(step.rows), unpack(step.query_lens), unpack(step.seq_lens))
        batch = Batch(
            token_ids_T=token_ids_T,
            positions_T=positions_T,
            spans=spans,
            write_slots_T=tuple(slots_T),
            slot_tables=self._tables.tables,
            cache=self._cache,
        )
        samples = Samples(unpack(step.sample_to), unpack(step.sample_positions), sample_to_S, sample_positions_S)
        prompts = tuple(self._prompt(spans[entry], width, data) for entry, width, data in step.prompt_logprobs)
        return StepInputs(batch, sample_tokens_S, samples, prompts)

    def remember(self, rows_S: Tensor, ids_S: Tensor) -> None:
        """Sampled ids, for later steps; a failed sample (-1) counts as token 0, because its row is about to end."""
        scatter_ids(ids_S, rows_S, self._last_ids_R)

    def _prompt(self, span: Span, width: int, next_ids: bytes) -> PromptTokens:
        ids = int32(next_ids).to(torch.int64)
        rows = torch.nonzero(ids >= 0).flatten()
        return PromptTokens((rows + span.start).to(self._device), ids[rows].to(self._device), width)


def int32(data: bytes) -> Tensor:
    """[N] int32 of little-endian bytes."""
    return torch.frombuffer(bytearray(data), dtype=torch.int32) if data else torch.empty(0, dtype=torch.int32)


def _places(rows_B: Tensor, query_lens_B: Tensor, *, seq_lens_B: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Each token's device row and its place in the sequence (which positions given by a model need not be)."""
    ends_B = query_lens_B.cumsum(0)
    shift_B = seq_lens_B - ends_B
    if num_tokens == len(rows_B):  # only decode rows: one token each
        return rows_B, seq_lens_B - 1
    both_2T = torch.stack((rows_B, shift_B)).repeat_interleave(query_lens_B, dim=1, output_size=num_tokens)
    return both_2T[0], both_2T[1] + torch.arange(num_tokens, device=rows_B.device)


def _spans(rows: Sequence[int], query_lens: Sequence[int], seq_lens: Sequence[int]) -> tuple[Span, ...]:
    start, spans = 0, []
    for row, query_len, seq_len in zip(rows, query_lens, seq_lens, strict=True):
        spans.append(Span(row, start, query_len, seq_len))
        start += query_len
    return tuple(spans)
