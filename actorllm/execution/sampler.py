"""From logits to tokens: every row by its own parameters, whatever else is in the batch.

The order of processing is the one of vLLM and Hugging Face's generate: penalties, logit bias, bans, a given mask,
temperature, top-k, top-p, min-p. Then one uniform number (`randomness`) picks a token by the inverse of the cumulative distribution in the
order of ids: an order that rounding cannot change, so every rank and device picks the same token up to rounding of
the probabilities themselves. Logprobs are of the raw distribution. Rows that need nothing of all this cost an argmax.

Legend: R device rows, S samples, A some of the samples, V vocabulary, P parameters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actorllm.execution.logprobs import Scores, score
from actorllm.execution.penalties import TokenCounts, has_penalty
from actorllm.execution.upload import Part, Upload
from actorllm.messages import RowSampling, pack, unpack
from actorllm_kernels.sampling.filters import FilterParameters, allowed
from actorllm_kernels.sampling.randomness import uniform

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM: the division would leave nothing but the best token anyhow."""

_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P, _PENALTIES = 0, 1, 2, 3, slice(4, 7)


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
class _Row:
    """What is kept of one open row's parameters outside of the tables."""

    sampling: RowSampling
    has_penalty: bool
    bias: tuple[Part, Part] | None
    banned_ids: Part | None

    @property
    def is_random(self) -> bool:
        return self.sampling.temperature >= GREEDY_BELOW

    @property
    def is_plain(self) -> bool:
        """Whether an argmax is all that the row ever needs."""
        special = self.is_random or self.has_penalty or self.sampling.logprobs is not None
        return not special and self.bias is None and self.banned_ids is None


@dataclass(frozen=True, slots=True)
class _Opening:
    """What makes a row's entries in the tables, on its way to the device. `seen` are the prompt's and the output's ids."""

    row: int
    seed: Part
    parameters: Part
    seen: tuple[Part, Part] | None


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Some of a step's samples, on the host and on the device."""

    indices: tuple[int, ...]
    index_A: Part


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """What one step samples: device row and output position of each sample, and which of them need more than an argmax."""

    rows: Sequence[int]
    positions: Sequence[int]
    rows_S: Part
    positions_S: Part
    special: Mapping[int, _Row]
    scored: _Chosen | None
    penalized: _Chosen | None
    random: _Chosen | None


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
        self._rows: dict[int, _Row] = {}
        self._special: set[int] = set()
        self._opening: list[_Opening] = []
        self._seeds_R = torch.zeros(self._max_running, dtype=torch.int64, device=self._device)
        self._parameters_RP = torch.zeros(self._max_running, 7, dtype=torch.float64, device=self._device)
        self._counts = TokenCounts(self._vocab_size, max_running=self._max_running, device=self._device)

    def open(self, row: int, sampling: RowSampling, *, prompt_ids: bytes, output_ids: bytes, upload: Upload) -> None:
        """A sequence takes `row`. The ids (int32 bytes) are what it has seen so far; only penalties need them."""
        bias = sampling.logit_bias
        has_bans = sampling.banned_ids and sampling.min_tokens > 0
        opened = _Row(
            sampling,
            has_penalty(sampling),
            (self._ids(bias, upload), upload.floats(bias.values())) if bias else None,
            self._ids(sampling.banned_ids, upload) if has_bans else None,
        )
        self._rows[row] = opened
        if opened.is_plain:
            self._special.discard(row)
            return
        self._special.add(row)
        parameters = (
            sampling.temperature,
            min(sampling.top_k or self._vocab_size, self._vocab_size),
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        )
        seen = (self._ids(unpack(prompt_ids), upload), self._ids(unpack(output_ids), upload)) if opened.has_penalty else None
        self._opening.append(_Opening(row, upload.longs((sampling.seed,)), upload.floats(parameters), seen))

    def close(self, row: int) -> None:
        """The sequence of `row` has ended."""
        self._rows.pop(row, None)
        self._special.discard(row)

    def plan(self, rows: bytes, positions: bytes, upload: Upload) -> SamplePlan:
        """A step's samples: their device rows and output positions, int32 bytes both."""
        on_host = unpack(rows)
        special = {index: self._rows[row] for index, row in enumerate(on_host) if row in self._special}

        def chosen(is_meant: Callable[[_Row], bool]) -> _Chosen | None:
            indices = tuple(index for index, row in special.items() if is_meant(row))
            return _Chosen(indices, upload.ints(pack(indices))) if indices else None

        return SamplePlan(
            on_host,
            unpack(positions),
            upload.ints(rows),
            upload.ints(positions),
            special=special,
            scored=chosen(lambda row: row.sampling.logprobs is not None),
            penalized=chosen(lambda row: row.has_penalty),
            random=chosen(lambda row: row.is_random),
        )

    def sample(self, logits_SV: Tensor, plan: SamplePlan, *, allowed: Mapping[int, Tensor] | None = None) -> Sampled:
        """One token a sample, of the tokens `allowed[row]` ([V] bool on the host) where the row has an entry.

        `logits` float32 may be written into. A row that is allowed nothing fails as one whose logits are not finite.
        """
        self._settle()
        raw_AV = logits_SV[plan.scored.index_A.tensor].log_softmax(-1) if plan.scored else None
        if self._invalid_ids is not None:
            logits_SV.index_fill_(1, self._invalid_ids, -torch.inf)
        if plan.special:
            self._process(logits_SV, plan)
        if allowed:
            self._mask(logits_SV, plan.rows, allowed)
        best_S = logits_SV.max(-1)
        ids_S = best_S.indices
        if plan.random is not None:
            self._draw(logits_SV, plan, chosen=plan.random, best_S=best_S.values, ids_S=ids_S)
        if plan.penalized is not None:
            index_A = plan.penalized.index_A.tensor
            self._counts.add(plan.rows_S.tensor[index_A], ids_S[index_A])
        found_S = torch.where(best_S.values.isfinite(), ids_S, -1)
        if plan.scored is None or raw_AV is None:
            return Sampled(found_S)
        widths = tuple(plan.special[index].sampling.logprobs or 0 for index in plan.scored.indices)
        scores = score(raw_AV, ids_S[plan.scored.index_A.tensor], max(widths))
        return Sampled(found_S, plan.scored.indices, widths, scores)

    def _settle(self) -> None:
        """Enter the opened rows into the tables."""
        for opening in self._opening:
            self._seeds_R[opening.row] = opening.seed.tensor[0]
            self._parameters_RP[opening.row] = opening.parameters.tensor
            if opening.seen is not None:
                self._counts.open(opening.row, *(part.tensor for part in opening.seen))
        self._opening.clear()

    def _process(self, logits_SV: Tensor, plan: SamplePlan) -> None:
        """Penalties, bias and bans, in place."""
        if plan.penalized is not None:
            index_A = plan.penalized.index_A.tensor
            rows_A = plan.rows_S.tensor[index_A]
            penalties_A3 = self._parameters_RP[rows_A, _PENALTIES].float()
            logits_SV[index_A] = self._counts.penalize(logits_SV[index_A], rows_A, penalties_A3)
        for index, row in plan.special.items():
            if row.bias is not None:
                ids, values = row.bias
                logits_SV[index].index_add_(0, ids.tensor, values.tensor.float())
            if row.banned_ids is not None and plan.positions[index] < row.sampling.min_tokens:
                logits_SV[index].index_fill_(0, row.banned_ids.tensor, -torch.inf)

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

    def _draw(self, logits_SV: Tensor, plan: SamplePlan, *, chosen: _Chosen, best_S: Tensor, ids_S: Tensor) -> None:
        """Sample the chosen samples at random and write their ids into `ids_S`."""
        index_A = slice(None) if len(chosen.indices) == len(plan.rows) else chosen.index_A.tensor
        rows_A = plan.rows_S.tensor[index_A]
        parameters_AP = self._parameters_RP[rows_A]
        # with the best at 0 no temperature can overflow
        scores_AV = logits_SV[index_A] - best_S[index_A].unsqueeze(1)
        scores_AV /= parameters_AP[:, _TEMPERATURE, None].float()
        settings = [plan.special[index].sampling for index in chosen.indices]
        weights_AV = scores_AV.exp()
        if any(has_filter(sampling) for sampling in settings):
            weights_AV *= allowed(scores_AV, self._filters(parameters_AP, settings))
        cumulative_AV = weights_AV.cumsum(1, dtype=torch.float64)
        goal_A = uniform(self._seeds_R[rows_A], plan.positions_S.tensor[index_A]) * cumulative_AV[:, -1]
        drawn_A = torch.searchsorted(cumulative_AV, goal_A.unsqueeze(1), right=True).squeeze(1)
        ids_S[index_A] = drawn_A.clamp(max=self._vocab_size - 1)  # past the end only where logits are not finite

    def _filters(self, parameters_AP: Tensor, settings: Sequence[RowSampling]) -> FilterParameters:
        ks = [sampling.top_k if 0 < sampling.top_k < self._vocab_size else 0 for sampling in settings]
        return FilterParameters(
            top_k_S=parameters_AP[:, _TOP_K].long(),
            top_p_S=parameters_AP[:, _TOP_P],
            min_p_S=parameters_AP[:, _MIN_P].float(),
            max_k=max(ks),
            has_nucleus=any(s.top_p < 1 and k == 0 for s, k in zip(settings, ks, strict=True)),
        )

    def _ids(self, values: Iterable[int], upload: Upload) -> Part:
        ids = tuple(values)
        # an index outside would be a sticky error on a GPU, and a request's ids are checked when it enters
        assert all(0 <= token_id < self._vocab_size for token_id in ids), "token id outside of the vocabulary"
        return upload.ints(pack(ids))


def has_filter(sampling: RowSampling) -> bool:
    """Whether a row may sample less than the whole vocabulary."""
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
