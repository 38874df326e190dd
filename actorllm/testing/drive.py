"""The scheduler and the fake device joined by hand, without actors: a test decides what happens when.

Plays the parts of execute (steps run in order, results arrive when told to) and of detokenize (outputs are collected, and
must be contiguous, announced, and ended once). `crash` starts the next epoch while results are under way.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from actorllm.cache.sizing import GroupSize
from actorllm.context import Context
from actorllm.messages import (
    Admit,
    Failure,
    FinishReason,
    Opened,
    Outputs,
    PromptScores,
    RowOutput,
    SamplingParams,
    Step,
    StepDone,
    StopFound,
    pack,
    unpack,
    unpack_floats,
)
from actorllm.scheduling.request import FinishedRequest, RequestTable
from actorllm.scheduling.scheduler import Scheduler
from actorllm.settings import SchedulingSettings
from actorllm.testing.fake_device import FakeDevice, NextToken, continuation, hashed_token

ADMIT_FIELDS = frozenset(("wait_deadline", "run_deadline", "namespace", "key_ids"))


@dataclass(slots=True)
class Received:
    """What detokenize was given of one choice."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    failure: Failure | None = None
    is_stop_token: bool = False
    is_stopped: bool = False


class Drive:
    """A scheduler over `groups`, its device, and all that came out. Times are `now`, which only a test moves."""

    def __init__(
        self,
        settings: SchedulingSettings,
        groups: Iterable[GroupSize],
        *,
        context: int,
        vocab_size: int = 97,
        next_token: NextToken | None = None,
    ) -> None:
        self.settings = settings
        self.groups = tuple(groups)
        self.context = context
        self.next_token = next_token or hashed_token(vocab_size)
        self.table = RequestTable()
        self.device = FakeDevice(
            self.groups,
            num_rows=settings.max_running,
            max_step_tokens=settings.max_step_tokens,
            vocab_size=vocab_size,
            next_token=self.next_token,
        )
        self.now = 0.0
        self.epoch = 0
        self.steps: list[Step] = []
        self.admits: dict[str, Admit] = {}
        self.opened: dict[str, Opened] = {}
        self.scores: dict[str, PromptScores] = {}
        self.choices: dict[tuple[str, int], Received] = {}
        self.finished: dict[str, FinishedRequest] = {}
        self.blamed: list[set[str]] = []
        self._launched: deque[Step] = deque()
        self._done: deque[StepDone] = deque()
        self.crash()

    # --- the outside ---

    def add(self, request_id: str, prompt_ids: Iterable[int], *, eos_ids: tuple[int, ...] = (), **fields) -> None:
        """Admit a request; `fields` are those of `Admit` (deadlines, keys) and of `SamplingParams` (the rest). Unless given, the
        seed is the number of the request, so that `expected` can know it."""
        own = {name: fields.pop(name) for name in ADMIT_FIELDS & fields.keys()}
        admit = Admit(
            request_id=request_id,
            prompt_ids=pack(prompt_ids),
            params=SamplingParams(**{"seed": len(self.admits), **fields}),
            eos_ids=eos_ids,
            arrived=self.now,
            **own,
        )
        self.scheduler.add(admit, self.now)
        self.admits[request_id] = admit
        for choice in range(admit.params.n):
            self.choices[request_id, choice] = Received()

    def stop(self, request_id: str, choice: int, token_index: int) -> None:
        """Detokenize finds a stop string at a token that it has received."""
        received = self.choices[request_id, choice]
        assert token_index < len(received.ids)
        del received.ids[token_index + 1 :], received.logprobs[token_index + 1 :]
        received.is_stopped = True
        self.scheduler.stop(StopFound(request_id, choice, token_index))

    def crash(self) -> None:
        """The next epoch over the same table; results under way arrive late."""
        late = [*self._done, *(self.device.run(step) for step in self._launched)]
        self._launched.clear()
        self._done.clear()
        blamed = self.scheduler.under_way if self.epoch else frozenset()
        self.blamed.append({request.request_id for request in blamed})
        self.epoch += 1
        context = Context(self.context, largest=self.context)
        self.scheduler = Scheduler(
            self.table, self.settings, groups=self.groups, context=context, epoch=self.epoch, blamed=blamed
        )
        for done in late:
            self.scheduler.complete(done)

    # --- the machine ---

    def launch(self) -> Step | None:
        """Plan one step and hand it to the device."""
        step = self.scheduler.plan(self.now)
        if step is not None:
            self.steps.append(step)
            self._launched.append(step)
        return step

    def compute(self) -> bool:
        """The device runs its oldest step; False without one."""
        if self._launched:
            self._done.append(self.device.run(self._launched.popleft()))
            return True
        return False

    def deliver(self) -> bool:
        """The oldest result arrives; False without one."""
        if not self._done and not self.compute():
            return False
        self.scheduler.complete(self._done.popleft())
        return True

    def take(self) -> Outputs | None:
        """Hand the outputs to detokenize."""
        outputs = self.scheduler.take_outputs()
        if outputs is not None:
            for opened in outputs.opened:
                assert opened.request_id not in self.opened, "opened twice"
                self.opened[opened.request_id] = opened
            for scores in outputs.prompts:
                self._receive_scores(scores)
            for row in outputs.rows:
                self._receive(row)
        for record in self.scheduler.take_finished():
            assert record.request_id not in self.finished, "finished twice"
            self.finished[record.request_id] = record
        return outputs

    def round(self) -> bool:
        """What the actors do in a burst: plan all that may be planned, take outputs, await one result."""
        while self.launch() is not None:
            pass
        self.take()
        return self.deliver()

    def run(self, max_rounds: int = 5000) -> None:
        """Rounds until nothing happens any more."""
        for _ in range(max_rounds):
            if not self.round():
                return
        raise AssertionError(f"still busy after {max_rounds} rounds")

    # --- what should have come out ---

    def expected(self, request_id: str, choice: int = 0) -> list[int]:
        """The choice's ids when it runs alone to its own end."""
        admit = self.admits[request_id]
        params = admit.params
        prompt_ids = unpack(admit.prompt_ids)
        row = RequestTable().create(admit, context=self.context).sequences[choice]
        count = row.request.max_tokens
        ids = continuation(prompt_ids, count, sampling=row.sampling(), next_token=self.next_token)
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else set(admit.eos_ids))
        length = next((index + 1 for index, token_id in enumerate(ids) if token_id in ends), count)
        return ids[:length]

    def ids(self, request_id: str, choice: int = 0) -> list[int]:
        """What the choice has brought so far."""
        return self.choices[request_id, choice].ids

    def _receive(self, row: RowOutput) -> None:
        assert row.request_id in self.opened, "tokens of a request that was not opened"
        received = self.choices[row.request_id, row.choice]
        assert not received.is_stopped, "output after a stop string"
        assert received.finish is None, "output after the end"
        ids = unpack(row.ids)
        assert len(ids) or row.finish, "an output that says nothing"
        assert row.start == len(received.ids), f"output from {row.start} on, {len(received.ids)} are known"
        received.ids += ids
        if row.logprobs is not None:
            assert len(unpack(row.logprobs.ids)) == len(ids) * row.logprobs.width
            received.logprobs += unpack_floats(row.logprobs.chosen)
        received.finish, received.failure, received.is_stop_token = row.finish, row.failure, row.is_stop_token

    def _receive_scores(self, scores: PromptScores) -> None:
        assert scores.request_id in self.opened and scores.request_id not in self.scores
        num_choices = self.admits[scores.request_id].params.n
        assert not any(self.ids(scores.request_id, choice) for choice in range(num_choices)), "tokens came first"
        self.scores[scores.request_id] = scores
