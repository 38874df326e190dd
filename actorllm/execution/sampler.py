"""From logits to tokens: every row by its own parameters, whatever else is in the batch.

The order of processing is the one of vLLM and Hugging Face's generate: penalties, logit bias, bans, a given mask,
temperature, top-k, top-p, min-p. Then one uniform number (`randomness`) picks a token by the inverse of the cumulative distribution in the
order of ids: an order that rounding cannot change, so every rank and device picks the same token up to rounding of
the probabilities themselves. Logprobs are of the raw distribution. Rows that need nothing of all this cost an argmax.

Legend: R device rows, S samples, A some of the samples, V vocabulary, P parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actorllm.execution.filters import FilterParameters, allowed
from actorllm.execution.logprobs import Scores, score
from actorllm.execution.penalties import TokenCounts, has_penalty
from actorllm.execution.randomness import uniform
from actorllm.messages import RowSampling

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM: the division would leave nothing but the best token anyhow."""

_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P, _PENALTIES = 0, 1, 2, 3, slice(4, 7)


@dataclass(frozen=True, slots=True)
class Samples:
    """What a step samples: device row and output position of each sample, on the host and on the device."""

    rows: Sequence[int]
    positions: Sequence[int]
    rows_S: Tensor
    positions_S: Tensor


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
    """What the host and the device keep of one open row's parameters."""

    sampling: RowSampling
    has_penalty: bool
    bias_ids: Tensor | None
    bias_values: Tensor | None
    banned_ids: Tensor | None

    @property
    def is_random(self) -> bool:
        return self.sampling.temperature >= GREEDY_BELOW

    @property
    def is_plain(self) -> bool:
        """Whether an argmax is all that the row ever needs."""
        special = self.is_random or self.has_penalty or self.sampling.logprobs is not None
        return not special and self.bias_ids is None and self.banned_ids is None


class Sampler:
    """The sampling state of all device rows. `invalid_ids` (a padded vocabulary's) are never sampled."""

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
        self._seeds_R = torch.zeros(self._max_running, dtype=torch.int64, device=self._device)
        self._parameters_RP = torch.zeros(self._max_running, 7, dtype=torch.float64, device=self._device)
        self._counts = TokenCounts(self._vocab_size, max_running=self._max_running, device=self._device)

    def open(self, row: int, sampling: RowSampling, *, prompt_ids: Tensor, output_ids: Tensor) -> None:
        """A sequence takes `row`. The ids [N] on the host are what it has seen so far; only penalties need them."""
        opened = _Row(
            sampling,
            has_penalty(sampling),
            self._ids(sampling.logit_bias) if sampling.logit_bias else None,
            self._floats(sampling.logit_bias.values()) if sampling.logit_bias else None,
            self._ids(sampling.banned_ids) if sampling.banned_ids and sampling.min_tokens > 0 else None,
        )
        self._rows[row] = opened
        if opened.is_plain:
            self._special.discard(row)
            return
        self._special.add(row)
        self._seeds_R[row] = sampling.seed
        self._parameters_RP[row] = torch.tensor(
            (
                sampling.temperature,
                min(sampling.top_k or self._vocab_size, self._vocab_size),
                sampling.top_p,
                sampling.min_p,
                sampling.repetition_penalty,
                sampling.presence_penalty,
                sampling.frequency_penalty,
            ),
            dtype=torch.float64,
        )
        if opened.has_penalty:
            self._counts.open(row, self._ids(prompt_ids.tolist()), self._ids(output_ids.tolist()))

    def close(self, row: int) -> None:
        """The sequence of `row` has ended."""
        self._rows.pop(row, None)
        self._special.discard(row)

    def sample(self, logits_SV: Tensor, samples: Samples, *, allowed: Mapping[int, Tensor] | None = None) -> Sampled:
        """One token a sample, of the tokens `allowed[row]` ([V] bool on the host) where the row has an entry.

        `logits` float32 may be written into. A row that is allowed nothing fails as one whose logits are not finite.
        """
        special = [index for index, row in enumerate(samples.rows) if row in self._special]
        rows = {index: self._rows[samples.rows[index]] for index in special}
        scored = tuple(index for index, row in rows.items() if row.sampling.logprobs is not None)
        raw_AV = logits_SV[self._index(scored)].log_softmax(-1) if scored else None
        if self._invalid_ids is not None:
            logits_SV.index_fill_(1, self._invalid_ids, -torch.inf)
        penalized = [index for index, row in rows.items() if row.has_penalty]
        if rows:
            self._process(logits_SV, samples, rows=rows, penalized=penalized)
        if allowed:
            self._mask(logits_SV, samples, allowed)
        best_S = logits_SV.max(-1)
        ids_S = best_S.indices
        if random := [index for index, row in rows.items() if row.is_random]:
            self._draw(logits_SV, samples, best_S=best_S.values, ids_S=ids_S, random=random)
        if penalized:
            index_A = self._index(penalized)
            self._counts.add(samples.rows_S[index_A], ids_S[index_A])
        scores, widths = (None, tuple(rows[index].sampling.logprobs or 0 for index in scored))
        if raw_AV is not None:
            scores = score(raw_AV, ids_S[self._index(scored)], max(widths))
        return Sampled(torch.where(best_S.values.isfinite(), ids_S, -1), scored, widths, scores)

    def _process(self, logits_SV: Tensor, samples: Samples, *, rows: dict[int, _Row], penalized: Sequence[int]) -> None:
        """Penalties, bias and bans, in place."""
        if penalized:
            index_A = self._index(penalized)
            rows_A = samples.rows_S[index_A]
            penalties_A3 = self._parameters_RP[rows_A, _PENALTIES].float()
            logits_SV[index_A] = self._counts.penalize(logits_SV[index_A], rows_A, penalties_A3)
        for index, row in rows.items():
            if row.bias_ids is not None and row.bias_values is not None:
                logits_SV[index, row.bias_ids] += row.bias_values
            if row.banned_ids is not None and samples.positions[index] < row.sampling.min_tokens:
                logits_SV[index, row.banned_ids] = -torch.inf

    def _mask(self, logits_SV: Tensor, samples: Samples, allowed: Mapping[int, Tensor]) -> None:
        """Leave only what each masked row may be given; all masks travel in one copy."""
        masked = [index for index, row in enumerate(samples.rows) if row in allowed]
        if not masked:
            return
        masks_AV = torch.stack([allowed[samples.rows[index]] for index in masked])
        assert masks_AV.shape[1] == self._vocab_size, "a mask has one entry for each token of the vocabulary"
        if self._device.type == "cuda":
            masks_AV = masks_AV.pin_memory().to(self._device, non_blocking=True)
        for index, mask_V in zip(masked, masks_AV, strict=True):
            logits_SV[index].masked_fill_(~mask_V, -torch.inf)

    def _draw(self, logits_SV: Tensor, samples: Samples, *, best_S: Tensor, ids_S: Tensor, random: Sequence[int]) -> None:
        """Sample the `random` samples and write their ids into `ids_S`."""
        is_all = len(random) == len(samples.rows)
        index_A = slice(None) if is_all else self._index(random)
        rows_A = samples.rows_S[index_A]
        parameters_AP = self._parameters_RP[rows_A]
        # with the best at 0 no temperature can overflow
        scores_AV = logits_SV[index_A] - best_S[index_A].unsqueeze(1)
        scores_AV /= parameters_AP[:, _TEMPERATURE, None].float()
        settings = [self._rows[samples.rows[index]].sampling for index in random]
        weights_AV = scores_AV.exp()
        if any(has_filter(sampling) for sampling in settings):
            weights_AV *= allowed(scores_AV, self._filters(parameters_AP, settings))
        cumulative_AV = weights_AV.cumsum(1, dtype=torch.float64)
        goal_A = uniform(self._seeds_R[rows_A], samples.positions_S[index_A]) * cumulative_AV[:, -1]
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

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _floats(self, values) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=self._device)

    def _ids(self, values) -> Tensor:
        ids = list(values)
        # an index outside would be a sticky error on a GPU, and a request's ids are checked when it enters
        assert all(0 <= token_id < self._vocab_size for token_id in ids), "token id outside of the vocabulary"
        return self._index(ids)


def has_filter(sampling: RowSampling) -> bool:
    """Whether a row may sample less than the whole vocabulary."""
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
