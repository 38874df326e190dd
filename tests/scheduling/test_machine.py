"""The scheduler under random traffic, faults and restarts, against one-request-at-a-time brute force."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actorllm.cache.sizing import GroupSize, slots_needed
from actorllm.errors import InvalidRequest, QueueFull
from actorllm.messages import unpack_floats
from actorllm.settings import SchedulingSettings
from actorllm.testing.drive import Drive, Received

CONTEXT = 24
VOCAB_SIZE = 13
MAX_WAITING = 6


class SchedulerMachine(RuleBasedStateMachine):
    """Rules are events of the outside and of the device, in any order; the end drains and settles accounts."""

    @initialize(
        depth=st.sampled_from((1, 2)),
        admission=st.sampled_from(("reserve", "optimistic")),
        windows=st.sampled_from(((None,), (None, 3), (5,), (None, 6, 2))),
        spare_slots=st.sampled_from((0, 3, 12, 40)),
        max_running=st.integers(2, 6),
        max_step_tokens=st.sampled_from((1, 4, 8, 16)),
    )
    def start(self, depth, admission, windows, spare_slots, max_running, max_step_tokens) -> None:
        self.drive = Drive(
            SchedulingSettings(
                max_running=max_running,
                max_step_tokens=max_step_tokens,
                depth=depth,
                admission=admission,
                max_waiting=MAX_WAITING,
            ),
            [
                GroupSize(f"group {window}", slots_needed(CONTEXT, window, max_step_tokens) + spare_slots, window)
                for window in windows
            ],
            context=CONTEXT,
            vocab_size=VOCAB_SIZE,
        )

    @rule(
        count=st.integers(1, 4),
        prompt_len=st.integers(1, 14),
        max_tokens=st.integers(0, 14),
        n=st.sampled_from((1, 1, 2, 3)),
        ends=st.fixed_dictionaries(
            {},
            optional={
                "eos_ids": st.just((0, 1)),
                "stop_token_ids": st.just((2,)),
                "ignore_eos": st.booleans(),
                "min_tokens": st.integers(0, 3),
            },
        ),
        scores=st.fixed_dictionaries({}, optional={"logprobs": st.integers(0, 2), "prompt_logprobs": st.integers(0, 2)}),
        waits=st.fixed_dictionaries({}, optional={"wait": st.integers(0, 3), "run": st.integers(0, 6)}),
    )
    def add(self, count, prompt_len, max_tokens, n, ends, scores, waits) -> None:
        ends = {**ends, "min_tokens": min(ends.get("min_tokens", 0), max_tokens)}
        deadlines = {f"{name}_deadline": self.drive.now + wait for name, wait in waits.items()}
        for extra in range(count):
            self._add(prompt_len + extra, max_tokens=max_tokens, n=n, **ends, **scores, **deadlines)

    def _add(self, prompt_len: int, *, n: int, **fields) -> None:
        drive = self.drive
        number, num_waiting = len(drive.admits), drive.scheduler.num_waiting
        prompt_ids = [1000 * (number + 1) + index for index in range(prompt_len)]
        try:
            drive.add(f"r{number}", prompt_ids, n=n, seed=number, **fields)
        except QueueFull:
            assert num_waiting == MAX_WAITING
        except InvalidRequest:
            is_past_context = prompt_len + fields["max_tokens"] > CONTEXT
            assert is_past_context or n > drive.settings.max_running or (n > 1 and drive.settings.admission == "reserve")

    @rule()
    def launch(self) -> None:
        self.drive.launch()

    @rule()
    def compute(self) -> None:
        self.drive.compute()

    @rule()
    def deliver(self) -> None:
        self.drive.deliver()

    @rule()
    def take(self) -> None:
        self.drive.take()

    @rule(count=st.integers(1, 12))
    def rounds(self, count) -> None:
        for _ in range(count):
            self.drive.round()

    @precondition(lambda self: self.drive.admits)
    @rule(data=st.data())
    def abort(self, data) -> None:
        self.drive.scheduler.abort(data.draw(st.sampled_from([*self.drive.admits, "unknown"])))

    @precondition(lambda self: self._stoppable())
    @rule(data=st.data())
    def stop(self, data) -> None:
        request_id, choice = data.draw(st.sampled_from(self._stoppable()))
        index = data.draw(st.integers(0, len(self.drive.ids(request_id, choice)) - 1))
        self.drive.stop(request_id, choice, index)

    @rule(seconds=st.integers(0, 2))
    def expire(self, seconds) -> None:
        self.drive.now += seconds
        self.drive.scheduler.expire(self.drive.now)
        deadline = self.drive.scheduler.next_deadline()
        assert deadline is None or deadline > self.drive.now

    @rule()
    def crash(self) -> None:
        self.drive.crash()

    @invariant()
    def counts_are_within_limits(self) -> None:
        scheduler = self.drive.scheduler
        assert scheduler.num_running <= self.drive.settings.max_running
        assert scheduler.num_waiting <= MAX_WAITING
        assert scheduler.num_in_flight <= self.drive.settings.depth
        if self.drive.settings.admission == "reserve":
            assert scheduler.num_pauses == 0

    def teardown(self) -> None:
        if not hasattr(self, "drive"):
            return
        drive = self.drive
        drive.run()
        drive.take()
        assert len(drive.table) == 0
        assert set(drive.finished) == set(drive.admits)
        scheduler = drive.scheduler
        assert not any(scheduler.slots_in_use)
        assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_paused) == (0, 0, 0)
        assert scheduler.next_deadline() is None
        for (request_id, choice), received in drive.choices.items():
            self._check_choice(request_id, choice, received)
        for request_id in drive.admits:
            self._check_request(request_id)
        self._check_all_rows_are_back()

    def _check_choice(self, request_id: str, choice: int, received: Received) -> None:
        expected = self.drive.expected(request_id, choice)
        assert received.ids == expected[: len(received.ids)]
        if self.drive.admits[request_id].params.logprobs is not None:
            assert received.logprobs == [-token_id for token_id in received.ids]
        if received.is_stopped:
            return
        assert received.finish is not None
        if received.finish in ("stop", "length"):
            assert received.ids == expected and received.failure is None
            params, admit = self.drive.admits[request_id].params, self.drive.admits[request_id]
            ends = {*params.stop_token_ids, *(() if params.ignore_eos else admit.eos_ids)}
            assert (received.finish == "stop") == received.is_stop_token == (expected[-1:] != [] and expected[-1] in ends)
        else:
            has_run = self.drive.finished[request_id].scheduled is not None
            assert received.failure is not None
            if received.failure.kind == "RequestFailed":
                assert self._was_crashed_alone_at_last(request_id)
                return
            timeout = "RequestTimeout" if has_run else "QueueTimeout"
            assert received.failure.kind == (timeout if received.finish == "error" else "RequestAborted")
            if received.failure.kind == "RequestTimeout":
                assert self.drive.admits[request_id].run_deadline is not None

    def _was_crashed_alone_at_last(self, request_id: str) -> bool:
        crashes = [blamed for blamed in self.drive.blamed if request_id in blamed]
        return len(crashes) >= 2 and crashes[-1] == {request_id}

    def _check_request(self, request_id: str) -> None:
        drive = self.drive
        admit, record = drive.admits[request_id], drive.finished[request_id]
        choices = [drive.choices[request_id, choice] for choice in range(admit.params.n)]
        assert record.output_len == sum(len(received.ids) for received in choices)
        assert record.prompt_len == len(admit.prompt_ids) // 4
        has_ids = any(received.ids for received in choices)
        assert record.scheduled is not None or not has_ids
        if admit.params.prompt_logprobs is None:
            assert request_id not in drive.scores
        elif has_ids or choices[0].finish in ("stop", "length"):
            scored = unpack_floats(drive.scores[request_id].scores.chosen)
            prompt_start = 1000 * (int(request_id[1:]) + 1)
            assert list(scored) == [-prompt_start - index for index in range(1, record.prompt_len)]

    def _check_all_rows_are_back(self) -> None:
        n = self.drive.settings.max_running
        self.drive.add("last", [1], n=n, max_tokens=1, seed=1)
        self.drive.run()
        assert all(self.drive.choices["last", choice].finish == "length" for choice in range(n))

    def _stoppable(self) -> list[tuple[str, int]]:
        choices = self.drive.choices.items()
        return [key for key, received in choices if received.ids and not received.is_stopped and not received.finish]


SchedulerMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestSchedulerMachine = SchedulerMachine.TestCase
