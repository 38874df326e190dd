"""Continuous batching: who computes how many tokens in the next step, and what becomes of the results.

Prefill chunks and decode rows share one flat batch under a token budget. With depth 2 a step is planned before the
last one's results are known: rows are assumed to continue, and a token sampled after its sequence's end is dropped.
Plain Python over ints: knows no tensor, no device and no event loop; times come in from outside.
"""

from array import array
from collections import deque
from collections.abc import Iterable

from actorllm.cache.sizing import GroupSize
from actorllm.context import Context
from actorllm.errors import (
    ActorLLMError,
    InvalidRequest,
    QueueFull,
    RequestAborted,
    RequestFailed,
)
from actorllm.messages import Admit, Failure, FinishReason, Outputs, Step, StepDone, StopFound, unpack
from actorllm.scheduling.admission import ADMISSIONS, check_choices, check_context
from actorllm.scheduling.outputs import Outbox
from actorllm.scheduling.planner import Planner
from actorllm.scheduling.policy import POLICIES
from actorllm.scheduling.request import FinishedRequest, Request, RequestTable, Sequence
from actorllm.scheduling.residency import Residents
from actorllm.scheduling.step_builder import Launched
from actorllm.scheduling.suspects import CRASHED_ALONE, guilty
from actorllm.scheduling.waiting import Deadlines, WaitingQueue, too_late
from actorllm.settings import SchedulingSettings


class Scheduler:
    """One epoch's scheduling over a table of requests.

    The table is the truth and survives; rows, slots and steps under way belong to the epoch. A new scheduler recovers the
    live requests of a table: all wait and are recomputed, and their outputs can be taken. `blamed` are those whom the last
    epoch's steps under way computed. One plans, launches, completes:

        while (step := scheduler.plan(now)) is not None: launch(step)
        scheduler.complete(done)                        # in the order of the steps
        outputs = scheduler.take_outputs()
    """

    def __init__(
        self,
        table: RequestTable,
        settings: SchedulingSettings,
        *,
        groups: Iterable[GroupSize],
        context: Context,
        epoch: int,
        blamed: frozenset[Request] = frozenset(),
    ) -> None:
        self._table, self._settings, self._context, self._epoch = table, settings, context, epoch
        self._depth = settings.num_under_way
        self._policy = POLICIES[settings.policy]
        self._residents = Residents(tuple(groups), settings.max_running)
        self._admission = ADMISSIONS[settings.admission](self._residents, settings.max_step_tokens)
        self._waiting = WaitingQueue()
        self._planner = Planner(self._waiting, self._residents, admission=self._admission, settings=settings)
        self._deadlines = Deadlines(table)
        self._outbox = Outbox(table)
        self._in_flight: deque[Launched] = deque()
        self._num_steps = 0
        for request in table:
            self._recover(request)
        for request in guilty(blamed, table):
            self._finish_all(request, "error", error=RequestFailed(CRASHED_ALONE))

    # --- what comes in ---

    def add(self, admit: Admit, now: float) -> None:
        """Take a request into the table. Raises `QueueFull`, `PromptTooLong`, `InvalidRequest`."""
        if admit.request_id in self._table:
            raise InvalidRequest(f"a request with id {admit.request_id!r} is running already", param="request_id")
        request = self._table.create(admit, context=self._context.length)
        check_context(request, self._context)
        check_choices(request, self._settings.max_running)
        self._admission.check(request)
        if self._waiting.num_new >= self._settings.max_waiting:
            self._planner.admit(now)  # those that came since the last plan and fit the device do not wait
        if self._waiting.num_new >= self._settings.max_waiting and not request.has_nothing_to_compute:
            raise QueueFull(f"{self._waiting.num_new} requests wait already; try again later, or raise --max-waiting")
        self._table.insert(request)
        self._deadlines.add(request)
        request.rank = self._policy(request)
        if request.has_nothing_to_compute:
            self._finish_all(request, "length")
        else:
            self._waiting.push(request.sequences[0])

    def abort(self, request_id: str) -> None:
        """End every living choice of a request; unknown ids are ignored."""
        request = self._table.get(request_id)
        if request is not None:
            self._finish_all(request, "abort", error=RequestAborted("the request was aborted"))

    def stop(self, found: StopFound) -> None:
        """Detokenize has ended a choice at a stop string: it keeps the tokens up to there and needs no output.

        This holds even if the choice has ended here since, because the stream was told first of the stop.
        """
        request = self._table.get(found.request_id)
        if request is None or not 0 <= found.choice < len(request.sequences):
            return
        sequence = request.sequences[found.choice]
        if found.token_index < sequence.num_sent:
            sequence.truncate(found.token_index + 1)
            self._withdraw(sequence)
            self._retire(request)

    def expire(self, now: float) -> None:
        """Fail the requests whose deadline has passed."""
        for request in self._deadlines.take_expired(now):
            self._finish_all(request, "error", error=too_late(request, now))

    def complete(self, done: StepDone) -> None:
        """Take the results of the oldest step under way; those of an older epoch are dropped."""
        if done.epoch != self._epoch:
            return
        launched = self._in_flight.popleft()
        assert launched.number == done.number, f"step {launched.number} is due, not {done.number}"
        self._accept_scores(launched, done)
        self._accept_samples(launched, unpack(done.sampled), done)
        for sequence in self._residents.landed(launched.stays, launched.seq_lens):
            self._retire(sequence.request)

    # --- what goes out ---

    def plan(self, now: float) -> Step | None:
        """The next step; None when `depth` steps are under way or there is nothing to compute."""
        if len(self._in_flight) >= self._depth:
            return None
        builder = self._planner.plan(now)
        if builder.is_empty:
            return None
        self._num_steps += 1
        step = builder.build(epoch=self._epoch, number=self._num_steps)
        self._in_flight.append(builder.launched)
        return step

    def take_outputs(self) -> Outputs | None:
        """Everything that detokenize has not been given, None if there is nothing."""
        outputs, ended = self._outbox.take()
        for request in ended:
            self._retire(request)
        return outputs

    def take_finished(self) -> list[FinishedRequest]:
        """The records of requests that ended since the last call, whose slots are back."""
        return self._table.take_finished()

    def next_deadline(self) -> float | None:
        """When `expire` will next have something to do, monotonic seconds."""
        return self._deadlines.next()

    # --- gauges ---

    @property
    def num_running(self) -> int:
        """Sequences on the device."""
        return len(self._residents.running)

    @property
    def num_waiting(self) -> int:
        """Requests that have never run."""
        return self._waiting.num_new

    @property
    def num_paused(self) -> int:
        """Sequences that have run and wait to be recomputed."""
        return self._waiting.num_paused

    @property
    def num_pauses(self) -> int:
        """Pauses of this epoch."""
        return self._planner.num_pauses

    @property
    def num_in_flight(self) -> int:
        """Steps under way."""
        return len(self._in_flight)

    @property
    def under_way(self) -> frozenset[Request]:
        """The requests that the steps under way compute."""
        return frozenset(stay.sequence.request for launched in self._in_flight for stay in launched.stays)

    @property
    def num_steps(self) -> int:
        """Steps of this epoch."""
        return self._num_steps

    @property
    def slots_in_use(self) -> tuple[int, ...]:
        """Slots taken, per cache group."""
        return tuple(pool.num_used for pool in self._residents.pools)

    @property
    def num_slots(self) -> tuple[int, ...]:
        """Slots there are, per cache group."""
        return tuple(pool.num_slots for pool in self._residents.pools)

    # --- beginnings and results ---

    def _recover(self, request: Request) -> None:
        """A request that an earlier scheduler left behind waits again, or has only its last outputs to hand out."""
        request.rank = self._policy(request)
        has_begun = any(len(sequence.output_ids) or sequence.finish for sequence in request.sequences)
        request.is_forked = request.params.n == 1 or has_begun
        for sequence in request.entrances():
            self._waiting.push(sequence)
        self._retire(request)

    def _accept_scores(self, launched: Launched, done: StepDone) -> None:
        entries = iter(done.prompt_logprobs)
        for chunk in launched.scored:
            request = chunk.request
            part = next(entries) if chunk.has_entry else None
            if request.is_finished:
                continue
            request.add_scores(part, is_last=chunk.is_last)
            if chunk.is_last:
                self._outbox.add_scores(request)
                if request.max_tokens <= 0:
                    self._finish_all(request, "length")

    def _accept_samples(self, launched: Launched, sampled: array, done: StepDone) -> None:
        outbox, logprobs = self._outbox, done.logprobs
        for index, sequence in enumerate(launched.samplers):
            if sequence.finish is not None:
                continue  # sampled after the end, which was not known at launch
            token_id = sampled[index]
            if token_id < 0:
                error = RequestFailed("the model's logits were not finite, so no token could be sampled")
                self._finish(sequence, "error", error=error)
                continue
            request, output_ids = sequence.request, sequence.output_ids
            output_ids.append(token_id)
            if request.num_unproved:
                request.num_unproved -= 1
            if logprobs and (entry := logprobs[index]) is not None:
                sequence.logprobs.append(entry)
            if token_id in request.end_ids:
                self._finish(sequence, "stop", is_stop_token=True)
            elif len(output_ids) >= request.max_tokens:
                self._finish(sequence, "length")
            else:
                outbox.add(sequence)

    # --- ends ---

    def _finish_all(self, request: Request, finish: FinishReason, *, error: ActorLLMError | None = None) -> None:
        for sequence in request.unfinished():
            self._finish(sequence, finish, error=error)

    def _finish(
        self,
        sequence: Sequence,
        finish: FinishReason,
        *,
        error: ActorLLMError | None = None,
        is_stop_token: bool = False,
    ) -> None:
        failure = None if error is None else Failure.of(error)
        sequence.end(finish, failure=failure, is_stop_token=is_stop_token)
        self._withdraw(sequence)
        self._outbox.add(sequence)

    def _withdraw(self, sequence: Sequence) -> None:
        """Take a sequence that has ended from the queue or from the device."""
        if not self._waiting.remove(sequence):
            self._residents.leave(sequence)

    def _retire(self, request: Request) -> None:
        """Strike out a request that has ended, was told so, and has its slots back."""
        is_live = self._table.get(request.request_id) is request
        if is_live and request.is_sent and not any(sequence in self._residents for sequence in request.sequences):
            self._table.retire(request)
