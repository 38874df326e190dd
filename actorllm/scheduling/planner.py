"""Chooses what the next step computes: who enters, who decodes, who prefills how much, who is paused.

Decode rows come first, one token each, then prefill chunks, both in the policy's order. Pausing takes the last in
that order. So those on the device always precede those who wait, and the first of all is neither overtaken nor
paused: it gets on in every step, and everyone is first some day. After a crash those whom the step computed get on one by one
until each has proved harmless.
"""

from actorllm.scheduling.admission import Admission, grant_for
from actorllm.scheduling.residency import Residence, Residents
from actorllm.scheduling.step_builder import StepBuilder
from actorllm.scheduling.waiting import WaitingQueue
from actorllm.settings import SchedulingSettings


class Planner:
    """Moves sequences between the queue and the device, and fills one step at a time."""

    def __init__(
        self, waiting: WaitingQueue, residents: Residents, *, admission: Admission, settings: SchedulingSettings
    ) -> None:
        self._waiting = waiting
        self._residents = residents
        self._admission = admission
        self._max_step_tokens = settings.max_step_tokens
        self._max_chunk = settings.max_step_tokens
        if any(group.window is not None for group in residents.groups):
            # Slots behind a window return when their step is done; the steps under way share the room for one.
            self._max_chunk = max(1, settings.max_step_tokens // settings.num_under_way)
        self.num_pauses = 0

    def plan(self, now: float) -> StepBuilder:
        """The next step, empty when there is nothing to compute."""
        self.admit(now)
        builder = StepBuilder(self._residents, self._max_step_tokens)
        self._plan_decodes(builder)
        self._plan_chunks(builder)
        return builder

    def _computing(self) -> list[Residence]:
        """Whose turn it is: everybody's, or the first request's alone that must prove that it crashes no step."""
        running = self._residents.running
        for stay in running:
            if stay.sequence.request.num_unproved:
                return [other for other in running if other.sequence.request is stay.sequence.request]
        return running

    def admit(self, now: float) -> None:
        """Let in who fits, strictly in order."""
        waiting, residents = self._waiting, self._residents
        while len(waiting):
            sequence = waiting.first
            grant = grant_for(sequence)
            if sequence in residents or grant.num_live > residents.num_free_rows:
                return  # the last step of one just paused brings a token that it must be recomputed with
            if not self._admission.fits(sequence, grant):
                return
            waiting.remove(sequence)
            request = sequence.request
            if request.scheduled is None:
                request.scheduled = now
            request.drop_partial_scores()
            stay = residents.enter(sequence, grant, target=sequence.length)
            if request.is_scored:  # the logprobs of a prompt are read while it is computed
                num_shared = residents.share_prefix(stay)
                request.num_cached = request.num_cached if request.is_opened_sent else num_shared

    def _plan_decodes(self, builder: StepBuilder) -> None:
        residents = self._residents
        ready = self._ready(builder)
        while len(ready) > residents.num_free_slots and self._pause_last(builder):
            ready = self._ready(builder)  # a suspect that was paused leaves its turn to the others
        del ready[residents.num_free_slots :]
        if ready:
            builder.add_decodes(ready)

    def _ready(self, builder: StepBuilder) -> list[Residence]:
        """Whose turn it is to decode, as far as there is room."""
        ready = [stay for stay in self._computing() if stay.wants_token]
        del ready[builder.room :]
        return ready

    def _plan_chunks(self, builder: StepBuilder) -> None:
        residents = self._residents
        for stay in [stay for stay in self._computing() if stay.num_planned < stay.target]:
            if not builder.room or stay.is_leaving:
                return
            wanted = min(stay.target - stay.num_planned, builder.room, self._max_chunk)
            while wanted > residents.num_free_slots and self._pause_last(builder, sparing=stay):
                pass
            count = min(wanted, residents.num_free_slots)
            if count:
                builder.add_chunk(stay, count)
            if count < wanted:
                return  # what gets free belongs to the first in order

    def _pause_last(self, builder: StepBuilder, *, sparing: Residence | None = None) -> bool:
        """Pause the last in the order, to give its slots to the others; False when nobody is to be paused now.

        While someone leaves, slots are on their way back, and nobody else is paused for their sake.
        """
        assert self._admission.may_pause, "slots ran out, although admission had reserved them"
        residents = self._residents
        last = residents.running[-1]
        if residents.num_leaving or len(residents.running) == 1 or last is sparing or builder.names(last):
            return False
        self.num_pauses += 1
        residents.leave(last.sequence)
        self._waiting.push(last.sequence)
        return True
