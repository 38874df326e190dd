"""A model on one device, from `Step` to `StepDone`.

A step has two phases: `forward` writes the cache and gives logits, `sample` turns them into tokens. Both are only
launched; `Launched.read` waits for the device. So the next step's forward can be launched, on the device's own sampled ids,
before this one's are read, and its sampling can wait for a mask that depends on them. Knows no event loop and no thread.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from actorllm.execution.decode_replay import DecodeReplay
from actorllm.execution.forward import forward
from actorllm.execution.kv_pool import KVPool, SlotTables
from actorllm.execution.logprobs import Scores, score_in_blocks
from actorllm.execution.sampler import Sampled, SamplePlan, Sampler
from actorllm.execution.step import PromptTokens, StepParts, StepReader
from actorllm.execution.upload import Upload
from actorllm.messages import Step, StepDone, TopLogprobs, pack
from actorllm.models.contract import CausalLM


@dataclass(frozen=True, kw_only=True)
class RunnerSizes:
    """How much of everything a rank holds: `num_slots[g]` tokens in cache group g (those of slots), `max_running` device rows of at
    most `context` tokens."""

    num_slots: tuple[int, ...]
    max_running: int
    context: int


class Pending(Protocol):
    """A launched step."""

    def read(self) -> StepDone:
        """Wait for the device and return the results; callable from another thread."""
        ...


class Runner(Protocol):
    """What a device thread drives. Steps come in order; each is sampled before the next one's forward is launched."""

    def forward(self, step: Step) -> Any:
        """Start the step's first phase; the result is for `sample` alone."""
        ...

    def sample(self, forwarded: Any, *, allowed: Mapping[int, Tensor] | None = None) -> Pending:
        """Start its second phase. `allowed[row]`, [V] bool on the host, are the only tokens that this device row may be given
        now (a grammar's, say); other rows are free."""
        ...

    def reset(self) -> None:
        """Forget every row: a new epoch begins."""
        ...


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A step whose forward pass is launched. `logits_SV` is None if nothing is sampled."""

    step: Step
    plan: SamplePlan
    logits_SV: Tensor | None
    prompts: tuple[tuple[Scores | None, int], ...]
    started: float


@dataclass(frozen=True, slots=True)
class Launched:
    """The results of a launched step on their way to the host; `ready` tells when they are there (None: now)."""

    step: Step
    sampled: Sampled
    prompts: tuple[tuple[Scores | None, int], ...]
    ready: torch.cuda.Event | None
    started: float

    def read(self) -> StepDone:
        """Wait for the results."""
        if self.ready is not None:
            self.ready.synchronize()
        ids = self.sampled.ids_S.tolist()
        logprobs: list[TopLogprobs | None] = []
        if (scores := self.sampled.scores) is not None:
            logprobs = [None] * len(ids)
            for place, (sample, width) in enumerate(zip(self.sampled.scored, self.sampled.widths, strict=True)):
                logprobs[sample] = scores.message(place, place + 1, width)
        return StepDone(
            epoch=self.step.epoch,
            number=self.step.number,
            sampled=pack(ids),
            logprobs=tuple(logprobs),
            prompt_logprobs=tuple(_prompt_message(scores, width) for scores, width in self.prompts),
            seconds=time.perf_counter() - self.started,
        )


class ResidentRunner:
    """All layers stay on the device; the cache is of `kv_dtype`, see `KVPool`. `layer` gives layer i in place of the
    model's own, for a runner that loads layers as they are needed. `decode` replays decode steps; None on GPUs, for layers that come
    and go, states that must not go on twice, and ranks that wait for others in the middle of a step."""

    def __init__(
        self,
        model: CausalLM,
        sizes: RunnerSizes,
        *,
        dtype: torch.dtype,
        device: torch.device,
        kv_dtype: torch.dtype | None = None,
        invalid_ids: tuple[int, ...] = (),
        layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        self.model = model
        self._sizes = sizes
        self._device = device
        self._layer = layer
        has_states = any(group.is_state for group in model.cache_groups)
        self._is_replayable = device.type == "cpu" and layer is None and model.shard.num_ranks == 1 and not has_states
        self._vocab_size: int = model.config.vocab_size
        self._cache = KVPool(model.cache_groups, sizes.num_slots, dtype=dtype, device=device, kv_dtype=kv_dtype, num_rows=sizes.max_running)
        self._sampler = Sampler(self._vocab_size, max_running=sizes.max_running, device=device, invalid_ids=invalid_ids)
        self.reset()

    def reset(self) -> None:
        """Forget every row; what the cache holds is never read before it is written again."""
        sizes = self._sizes
        tables = SlotTables(len(sizes.num_slots), num_rows=sizes.max_running, context=sizes.context, device=self._device)
        self._reader = StepReader(self._cache, tables, max_running=sizes.max_running, device=self._device)
        self._sampler.reset()
        self.decode = DecodeReplay(lambda parts: self.model.head(self._hidden(parts))) if self._is_replayable else None

    def run(self, step: Step) -> StepDone:
        """Both phases of the step, and wait for them."""
        return self.sample(self.forward(step)).read()

    @torch.inference_mode()
    def forward(self, step: Step) -> Forwarded:
        """The first phase: rows end and begin, the cache is written, logits are computed."""
        started = time.perf_counter()
        upload = Upload(self._device)
        parts = self._reader.add(step, upload)
        plan = self._plan_samples(step, upload)
        if self.decode is not None and parts.is_decode:
            return Forwarded(step, plan, self.decode.logits(parts, upload), (), started)
        upload.send()
        hidden_TD = self._hidden(parts)
        for opened in step.opened:
            if opened.state_of >= 0:
                self._cache.copy_states(opened.state_of, opened.row)
        prompts = tuple((self._score(tokens, hidden_TD), tokens.width) for tokens in parts.prompts)
        logits_SV = self.model.head(hidden_TD[parts.sample_tokens_S.tensor]) if plan.rows else None
        return Forwarded(step, plan, logits_SV, prompts, started)

    @torch.inference_mode()
    def sample(self, forwarded: Forwarded, *, allowed: Mapping[int, Tensor] | None = None) -> Launched:
        """The second phase; the results are on their way to the host."""
        sampled = Sampled(torch.empty(0, dtype=torch.int64))
        if forwarded.logits_SV is not None:
            found = self._sampler.sample(forwarded.logits_SV, forwarded.plan, allowed=allowed)
            self._reader.remember(forwarded.plan.rows_S.tensor, found.ids_S)
            scores = found.scores.to_host() if found.scores is not None else None
            sampled = Sampled(found.ids_S.to("cpu", non_blocking=True), found.scored, found.widths, scores)
        ready = None
        if self._device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        return Launched(forwarded.step, sampled, forwarded.prompts, ready, forwarded.started)

    def _hidden(self, parts: StepParts) -> Tensor:
        """[T, D] final hidden states of a step that is sent."""
        return self.model.norm(forward(self.model, self._reader.batch(parts), layer=self._layer))

    def _plan_samples(self, step: Step, upload: Upload) -> SamplePlan:
        """Rows end and begin, then the step's samples are known."""
        for row in step.closed:
            self._sampler.close(row)
        for opened in step.opened:
            self._sampler.open(
                opened.row, opened.sampling, prompt_ids=opened.prompt_ids, output_ids=opened.output_ids, upload=upload
            )
        return self._sampler.plan(step.sample_to, step.sample_positions, upload)

    def _score(self, tokens: PromptTokens, hidden_TD: Tensor) -> Scores | None:
        """A prompt's logprobs, on their way to the host; None if no token of it has a next one."""
        if not tokens.num_tokens:
            return None
        scores = score_in_blocks(
            self.model.head,
            hidden_TD[tokens.rows_N.tensor],
            ids_N=tokens.next_ids_N.tensor,
            width=tokens.width,
            vocab_size=self._vocab_size,
        )
        return scores.to_host()


def _prompt_message(scores: Scores | None, width: int) -> TopLogprobs:
    if scores is None:
        return TopLogprobs(width, b"", b"", b"")
    return scores.message(0, len(scores.chosen_N), width)
