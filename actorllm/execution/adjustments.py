"""Tokens whose logits a row changes, by its bias or while it bans them, in tables that live on the device.

Legend: R device rows, B places of a row, N changed tokens of one row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actorllm.execution.upload import Part, Upload
from actorllm.messages import RowSampling, pack
from actorllm_kernels.sampling import Adjustments

LEAST_PLACES = 16


@dataclass(frozen=True, slots=True)
class Adjusted:
    """One row's tokens on their way to the device; see `Adjustments`."""

    count: int
    ids: Part
    values: Part
    until: Part


def has_adjustment(sampling: RowSampling) -> bool:
    """Whether a row changes single tokens."""
    return bool(sampling.logit_bias) or (sampling.min_tokens > 0 and bool(sampling.banned_ids))


def adjusted(sampling: RowSampling, upload: Upload) -> Adjusted:
    """What a row changes: a token that is biased and banned has one place."""
    banned = dict.fromkeys(sampling.banned_ids, sampling.min_tokens)
    ids = tuple(sampling.logit_bias | banned)
    return Adjusted(
        len(ids),
        upload.ints(pack(ids)),
        upload.floats(sampling.logit_bias.get(each, 0.0) for each in ids),
        upload.ints(pack([banned.get(each, 0) for each in ids])),
    )


class AdjustedTokens:
    """The tables of all device rows. The memory (20 bytes * R * B) is taken when the first row asks for it, and grows with B, which
    the largest counts of a request's biases and stop ids bound: 2048 places, 2.5 MiB for 64 rows."""

    def __init__(self, *, max_running: int, device: torch.device) -> None:
        self._num_rows = max_running
        self._device = device
        self._tables: Adjustments | None = None

    @property
    def tables(self) -> Adjustments:
        """As the operators read them."""
        assert self._tables is not None, "no row has adjustments"
        return self._tables

    def open(self, row: int, changes: Adjusted | None) -> None:
        """A sequence takes `row`; what its predecessor changed is forgotten."""
        if changes is None:
            if self._tables is not None:
                self._tables.lens_R[row] = 0
            return
        self._tables = self._at_least(changes.count)
        self._tables.lens_R[row] = changes.count
        self._tables.ids_RB[row, : changes.count] = changes.ids.tensor
        self._tables.values_RB[row, : changes.count] = changes.values.tensor
        self._tables.until_RB[row, : changes.count] = changes.until.tensor

    def _at_least(self, num_places: int) -> Adjustments:
        """The tables with so many places, in powers of two."""
        old = self._tables
        if old is not None and old.ids_RB.shape[1] >= num_places:
            return old
        width = max(LEAST_PLACES, 1 << (num_places - 1).bit_length())

        def table(dtype: torch.dtype, known: Tensor | None) -> Tensor:
            empty = torch.zeros(self._num_rows, width, dtype=dtype, device=self._device)
            if known is not None:
                empty[:, : known.shape[1]] = known
            return empty

        return Adjustments(
            old.lens_R if old else torch.zeros(self._num_rows, dtype=torch.int64, device=self._device),
            table(torch.int64, old and old.ids_RB),
            table(torch.float32, old and old.values_RB),
            table(torch.int64, old and old.until_RB),
        )
