"""From a `Step` message to a `Batch` on the device.

All numbers of a step travel to the device in one copy (`upload`). The tables of rows and slots stay there between steps;
a step brings only what changed. Knows no model and no sampling.

Legend: T tokens of the batch, B entries (rows) in it, S samples, R device rows, N tokens of one prompt.
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from actorllm.execution.kv_pool import SlotTables
from actorllm.execution.upload import Part, Upload
from actorllm.layers.batch import Batch, KVCache
from actorllm.messages import Step, pack, unpack
from actorllm_kernels.attention import Span, flat_spans
from actorllm_kernels.token_ids import gather_ids, scatter_ids

_MINUS_ONE = b"\xff" * 4


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The flat tokens `rows_N` of one entry whose next ids are to be scored, with `width` candidates each."""

    rows_N: Part
    next_ids_N: Part
    num_tokens: int
    width: int


@dataclass(frozen=True, slots=True)
class StepParts:
    """A step on its way to the device, in the order of its message. `rows_T` and `columns_T` are each token's device row and its place
    in the sequence (which positions given by a model need not be), `spans_B4` every entry's `Span` as int32; `sample_tokens_S` are
    the flat tokens that samples read."""

    step: Step
    spans: tuple[Span, ...]
    opened: tuple[tuple[Part, ...], ...]
    token_ids_T: Part
    positions_T: Part
    write_slots_T: tuple[Part, ...]
    rows_T: Part
    columns_T: Part
    spans_B4: Part
    sample_tokens_S: Part
    prompts: tuple[PromptTokens, ...]

    @property
    def is_decode(self) -> bool:
        """Whether each entry is one token, all are sampled, and nothing else happens."""
        num_rows = len(self.spans)
        is_plain = not self.step.opened and not self.prompts and 4 * num_rows == len(self.step.token_ids)
        return is_plain and self.step.sample_rows == pack(range(num_rows))

    @property
    def has_unknown_ids(self) -> bool:
        """Whether some tokens are what an earlier step samples."""
        return _MINUS_ONE in self.step.token_ids  # or, rarely, in two neighbours' bytes, which changes nothing


class StepReader:
    """Turns steps into batches, and keeps each row's last sampled id for the steps that do not know it yet."""

    def __init__(self, cache: KVCache, tables: SlotTables, *, max_running: int, device: torch.device) -> None:
        self._cache = cache
        self._tables = tables
        self._last_ids_R = torch.zeros(max_running, dtype=torch.int64, device=device)

    def add(self, step: Step, upload: Upload) -> StepParts:
        """Add the step's numbers to the upload."""
        spans = flat_spans(zip(unpack(step.rows), unpack(step.query_lens), unpack(step.seq_lens), strict=True))
        return StepParts(
            step=step,
            spans=spans,
            opened=tuple(tuple(upload.ints(slots) for slots in opened.slots) for opened in step.opened),
            token_ids_T=upload.ints(step.token_ids),
            positions_T=upload.ints(step.positions),
            write_slots_T=tuple(upload.ints(slots) for slots in step.write_slots),
            rows_T=upload.longs(row for row, _, query_len, _ in spans for _ in range(query_len)),
            columns_T=upload.longs(chain.from_iterable(range(end - query_len, end) for _, _, query_len, end in spans)),
            spans_B4=upload.int32s(pack(chain.from_iterable(spans))),
            sample_tokens_S=upload.ints(step.sample_rows),
            prompts=tuple(_prompt(spans[entry], data, width=width, upload=upload) for entry, width, data in step.prompt_logprobs),
        )

    def batch(self, parts: StepParts) -> Batch:
        """The batch of a step whose numbers are sent; its tokens are entered into the slot tables."""
        token_ids_T = parts.token_ids_T.tensor
        for opened, slots in zip(parts.step.opened, parts.opened, strict=True):  # with the slots that it shares with a sibling
            self._tables.open(opened.row, opened.prefix_start, [part.tensor for part in slots])
        slots_T = tuple(part.tensor for part in parts.write_slots_T)
        rows_T = parts.rows_T.tensor
        if parts.has_unknown_ids:
            token_ids_T = gather_ids(token_ids_T, rows_T, self._last_ids_R)
        self._tables.write(rows_T, parts.columns_T.tensor, slots_T)
        return Batch(
            token_ids_T=token_ids_T,
            positions_T=parts.positions_T.tensor,
            rows_T=rows_T,
            spans=parts.spans,
            write_slots_T=slots_T,
            slot_tables=self._tables.tables,
            cache=self._cache,
            spans_B4=parts.spans_B4.tensor.view(-1, 4),
        )

    def remember(self, rows_S: Tensor, ids_S: Tensor) -> None:
        """Sampled ids, for later steps; a failed sample (-1) counts as token 0, because its row is about to end."""
        scatter_ids(ids_S, rows_S, self._last_ids_R)


def _prompt(span: Span, next_ids: bytes, *, width: int, upload: Upload) -> PromptTokens:
    """All tokens of the entry but those without a next one (-1)."""
    ids = unpack(next_ids)
    kept = [place for place, token_id in enumerate(ids) if token_id >= 0]
    rows_N = upload.ints(pack(span.start + place for place in kept))
    return PromptTokens(rows_N, upload.ints(pack(ids[place] for place in kept)), len(kept), width)
