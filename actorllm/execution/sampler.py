"""From logits to tokens: every row by its own parameters, whatever else is in the batch.

The order of processing is the one of vLLM and Hugging Face's generate: penalties, logit bias, bans, a given mask,
temperature, top-k, top-p, min-p; `actorllm_kernels.sampling` specifies each. Logprobs are of the raw distribution. Steps whose
rows need nothing of all this cost an argmax.

Legend: R device rows, S samples, A some of the samples, V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actorllm.execution.adjustments import Adjusted, AdjustedTokens, adjusted, has_adjustment
from actorllm.execution.logprobs import Scores, score
from actorllm.execution.penalties import TokenCounts, has_penalty
from actorllm.execution.upload import Part, Upload
from actorllm.messages import RowSampling, pack, unpack
from actorllm_kernels import sampling as operators
from actorllm_kernels.sampling import GREEDY_BELOW, NUM_PARAMETERS, Needs, Rows


@dataclass(frozen=True, slots=True)
class Sampled:
    """`ids_S` int64 are the tokens; -1 where the row's logits were not finite, so that nothing can be sampled.

    `scores` belong to the samples `scored`, with `widths[i]` candidates for sample `scored[i]`.
    """

    ids_S: Tensor
    scored: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    scores: Scores | None = None


@dataclass(frozen=True, slots=True)
class _Opening:
    """What makes a row's entries in the tables, on its way to the device. `seen` are the prompt's and the output's ids."""

    row: int
    seed: Part
    parameters: Part
    seen: tuple[Part, Part] | None
    adjusted: Adjusted | None


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """What one step samples: device row of each sample, its output position, and what any of the rows needs.

    `scored` are the samples with logprobs, on the host and on the device, and `widths` their candidates.
    """

    rows: Sequence[int]
    rows_S: Part
    positions_S: Part
    needs: Needs
    has_penalty: bool
    has_adjustment: bool
    scored: tuple[int, ...]
    scored_A: Part | None
    widths: tuple[int, ...]


class Sampler:
    """The sampling state of all device rows. `invalid_ids` (a padded vocabulary's) are never sampled.

    Rows are opened and a step's samples planned before its upload is sent; all that they need travels with it.
    """

    def __init__(self, vocab_size: int, *, max_running: int, device: torch.device, invalid_ids: Sequence[int] = ()) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._max_running = max_running
        self._invalid_ids = torch.tensor(invalid_ids, dtype=torch.int64, device=device) if invalid_ids else None
        self.reset()

    def reset(self) -> None:
        """Forget every row."""
        self._asked: dict[int, RowSampling] = {}
        self._opening: list[_Opening] = []
        self._rows = Rows(
            torch.zeros(self._max_running, dtype=torch.int64, device=self._device),
            torch.zeros(self._max_running, NUM_PARAMETERS, dtype=torch.float64, device=self._device),
        )
        self._counts = TokenCounts(self._vocab_size, max_running=self._max_running, device=self._device)
        self._adjusted = AdjustedTokens(max_running=self._max_running, device=self._device)

    def open(self, row: int, sampling: RowSampling, *, prompt_ids: bytes, output_ids: bytes, upload: Upload) -> None:
        """A sequence takes `row`. The ids (int32 bytes) are what it has seen so far; only penalties need them."""
        self._asked[row] = sampling
        parameters = (
            sampling.temperature,
            min(sampling.top_k or self._vocab_size, self._vocab_size),
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        )
        seen = None
        if has_penalty(sampling):
            seen = self._ids(unpack(prompt_ids), upload), self._ids(unpack(output_ids), upload)
        changes = None
        if has_adjustment(sampling):
            self._check((*sampling.logit_bias, *sampling.banned_ids))
            changes = adjusted(sampling, upload)
        self._opening.append(_Opening(row, upload.longs((sampling.seed,)), upload.floats(parameters), seen, changes))

    def close(self, row: int) -> None:
        """The sequence of `row` has ended."""
        self._asked.pop(row, None)

    def plan(self, rows: bytes, positions: bytes, upload: Upload) -> SamplePlan:
        """A step's samples: their device rows and output positions, int32 bytes both."""
        on_host = unpack(rows)
        asked = [self._asked[row] for row in on_host]
        random = [sampling for sampling in asked if sampling.temperature >= GREEDY_BELOW]
        scored = tuple(index for index, sampling in enumerate(asked) if sampling.logprobs is not None)
        return SamplePlan(
            on_host,
            upload.ints(rows),
            upload.ints(positions),
            needs=Needs(
                is_random=bool(random),
                has_top_k=any(0 < sampling.top_k < self._vocab_size for sampling in random),
                has_top_p=any(sampling.top_p < 1 for sampling in random),
                has_min_p=any(sampling.min_p > 0 for sampling in random),
            ),
            has_penalty=any(map(has_penalty, asked)),
            has_adjustment=any(map(has_adjustment, asked)),
            scored=scored,
            scored_A=upload.ints(pack(scored)) if scored else None,
            widths=tuple(asked[index].logprobs or 0 for index in scored),
        )

    def sample(self, logits_SV: Tensor, plan: SamplePlan, *, allowed: Mapping[int, Tensor] | None = None) -> Sampled:
        """One token a sample, of the tokens `allowed[row]` ([V] bool on the host) where the row has an entry.

        `logits` float32 may be written into. A row that is allowed nothing fails as one whose logits are not finite.
        """
        self._settle()
        rows_S, positions_S = plan.rows_S.tensor, plan.positions_S.tensor
        raw_AV = None if plan.scored_A is None else logits_SV[plan.scored_A.tensor].log_softmax(-1)
        if self._invalid_ids is not None:
            logits_SV.index_fill_(1, self._invalid_ids, -torch.inf)
        if plan.has_penalty:
            operators.penalize(logits_SV, rows_S, self._counts.seen, rows=self._rows)
        if plan.has_adjustment:
            operators.adjust(logits_SV, rows_S, positions_S, adjustments=self._adjusted.tables)
        if allowed:
            self._mask(logits_SV, plan.rows, allowed)
        ids_S = operators.draw(logits_SV, rows_S, positions_S, rows=self._rows, needs=plan.needs)
        if plan.has_penalty:
            operators.count(ids_S, rows_S, self._counts.seen)
        if plan.scored_A is None or raw_AV is None:
            return Sampled(ids_S)
        scores = score(raw_AV, ids_S[plan.scored_A.tensor].clamp(min=0), max(plan.widths))
        return Sampled(ids_S, plan.scored, plan.widths, scores)

    def _settle(self) -> None:
        """Enter the opened rows into the tables."""
        for opening in self._opening:
            self._rows.seeds_R[opening.row] = opening.seed.tensor[0]
            self._rows.parameters_RP[opening.row] = opening.parameters.tensor
            self._adjusted.open(opening.row, opening.adjusted)
            if opening.seen is not None:
                self._counts.open(opening.row, *(part.tensor for part in opening.seen))
        self._opening.clear()

    def _mask(self, logits_SV: Tensor, rows: Sequence[int], allowed: Mapping[int, Tensor]) -> None:
        """Leave only what each masked row may be given; all masks travel in one copy."""
        masked = [index for index, row in enumerate(rows) if row in allowed]
        if not masked:
            return
        masks_AV = torch.stack([allowed[rows[index]] for index in masked])
        assert masks_AV.shape[1] == self._vocab_size, "a mask has one entry for each token of the vocabulary"
        if self._device.type == "cuda":
            masks_AV = masks_AV.pin_memory()
        for index, mask_V in zip(masked, masks_AV.to(self._device, non_blocking=True), strict=True):
            logits_SV[index].masked_fill_(~mask_V, -torch.inf)

    def _ids(self, values: Iterable[int], upload: Upload) -> Part:
        ids = tuple(values)
        self._check(ids)
        return upload.ints(pack(ids))

    def _check(self, ids: Sequence[int]) -> None:
        # an index outside would be a sticky error on a GPU, and a request's ids are checked when it enters
        assert all(0 <= token_id < self._vocab_size for token_id in ids), "token id outside of the vocabulary"
