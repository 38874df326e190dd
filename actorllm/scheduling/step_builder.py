"""Turns decisions (these rows decode, this one prefills so many tokens) into one flat `Step`.

Takes the slots it writes; decides nothing about who runs. Legend: T tokens, R rows, S samples, G groups.
"""

from array import array
from dataclasses import dataclass, field

from actorllm.messages import RowOpen, Step, pack
from actorllm.scheduling.request import Request, Sequence
from actorllm.scheduling.residency import Residence, Residents

DEVICE_TOKEN = -1  # the row's last sampled id, which the device knows before we do


@dataclass(frozen=True, slots=True)
class Scored:
    """A chunk of a prompt whose logprobs are wanted. `has_entry`: the step computes some (a chunk that is the
    prompt's last token has none); `is_last`: the prompt ends with it."""

    request: Request
    has_entry: bool
    is_last: bool


@dataclass(slots=True)
class Launched:
    """What must be remembered of a step until it is done.

    `stays` are all that it names, with the tokens each then has (`seq_lens`); `samplers` are the sequences of its S
    samples; the `scored` chunks with an entry are those of `Step.prompt_logprobs`, in order.
    """

    number: int = 0
    stays: list[Residence] = field(default_factory=list)
    seq_lens: list[int] = field(default_factory=list)
    samplers: list[Sequence] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)


class StepBuilder:
    """Collects one step. `room` is what is left of the token budget."""

    def __init__(self, residents: Residents, max_step_tokens: int) -> None:
        self.room = max_step_tokens
        self.launched = Launched()
        self._residents = residents
        self._opened: list[RowOpen] = []
        self._rows: list[int] = []
        self._query_lens: list[int] = []
        self._seq_lens: list[int] = []
        self._token_ids = array("i")
        self._positions: list[int] = []
        self._write_slots: list[list[int]] = [[] for _ in residents.pools]
        self._sample_rows: list[int] = []
        self._sample_to: list[int] = []
        self._sample_positions: list[int] = []
        self._prompt_logprobs: list[tuple[int, int, bytes]] = []

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self._rows

    def names(self, stay: Residence) -> bool:
        """Whether the stay is part of the step."""
        return stay in self.launched.stays

    def add_decodes(self, stays: list[Residence]) -> None:
        """One token each for rows whose last sample is on the device. The step's first tokens, so that sample i
        reads token i."""
        count = len(stays)
        self.room -= count
        rows = [stay.row for stay in stays]
        positions = [stay.num_planned for stay in stays]
        for stay in stays:
            stay.num_planned += 1
            stay.num_in_flight += 1
        for collected, pool, slots in zip(
            self._write_slots, self._residents.pools, zip(*[stay.slots for stay in stays], strict=True), strict=True
        ):
            taken = pool.allocate(count)
            collected += taken
            for held, slot in zip(slots, taken, strict=True):
                held.append(slot)
        seq_lens = [position + 1 for position in positions]
        sequences = [stay.sequence for stay in stays]
        self._rows += rows
        self._query_lens += [1] * count
        self._seq_lens += seq_lens
        self._token_ids.extend([DEVICE_TOKEN] * count)
        self._positions += positions
        self._sample_rows += range(count)
        self._sample_to += rows
        self._sample_positions += [
            length - sequence.request.prompt_len for length, sequence in zip(seq_lens, sequences, strict=True)
        ]
        launched = self.launched
        launched.stays += stays
        launched.seq_lens += seq_lens
        launched.samplers += sequences

    def add_chunk(self, stay: Residence, count: int) -> None:
        """The next `count` known ids of a row. Its last chunk samples, and lets the siblings in."""
        self.room -= count
        request = stay.sequence.request
        start, end = stay.num_planned, stay.num_planned + count
        if not stay.is_opened:
            self._open(stay)
        for collected, slots in zip(self._write_slots, self._residents.extend(stay, count), strict=True):
            collected += slots
        if not request.is_scored:
            self._score(stay, start, end)
        self._rows.append(stay.row)
        self._query_lens.append(count)
        self._seq_lens.append(end)
        self._token_ids += stay.sequence.token_ids(start, end)
        self._positions += range(start, end)
        self._name(stay, end)
        if end == stay.target and request.max_tokens > 0:
            self._sample(stay)
            if not request.is_forked:
                self._fork(stay)

    def build(self, *, epoch: int, number: int) -> Step:
        """The message; `launched` is what to remember of it."""
        self.launched.number = number
        return Step(
            epoch=epoch,
            number=number,
            closed=self._residents.take_rows_to_close(),
            opened=tuple(self._opened),
            rows=pack(self._rows),
            query_lens=pack(self._query_lens),
            seq_lens=pack(self._seq_lens),
            token_ids=self._token_ids.tobytes(),
            positions=pack(self._positions),
            write_slots=tuple(pack(slots) for slots in self._write_slots),
            sample_rows=pack(self._sample_rows),
            sample_to=pack(self._sample_to),
            sample_positions=pack(self._sample_positions),
            prompt_logprobs=tuple(self._prompt_logprobs),
        )

    def _fork(self, first: Residence) -> None:
        """The siblings sample from the token that choice 0 has just been given."""
        first.sequence.request.is_forked = True
        for sibling in self._residents.fork(first):
            self._open(sibling, state_of=first.row)
            self._name(sibling, sibling.target)
            self._sample(sibling)

    def _open(self, stay: Residence, *, state_of: int = -1) -> None:
        sequence, request = stay.sequence, stay.sequence.request
        stay.is_opened = True
        self._opened.append(
            RowOpen(
                row=stay.row,
                sampling=sequence.sampling(),
                prompt_ids=request.prompt_ids.tobytes() if request.params.repetition_penalty != 1.0 else b"",
                output_ids=sequence.output_ids.tobytes(),
                prefix_start=tuple(stay.first),
                slots=tuple(pack(slots) for slots in stay.slots),
                state_of=state_of,
            )
        )

    def _name(self, stay: Residence, seq_len: int) -> None:
        stay.num_in_flight += 1
        self.launched.stays.append(stay)
        self.launched.seq_lens.append(seq_len)

    def _sample(self, stay: Residence) -> None:
        """The row samples from the last token of the flat batch so far."""
        self._sample_rows.append(len(self._positions) - 1)
        self._sample_to.append(stay.row)
        self._sample_positions.append(stay.target - stay.sequence.request.prompt_len)
        self.launched.samplers.append(stay.sequence)

    def _score(self, stay: Residence, start: int, end: int) -> None:
        """Ask for the logprobs of the prompt's tokens `start + 1 .. end`, of which the last may not exist."""
        request = stay.sequence.request
        next_ids = request.prompt_ids[start + 1 : end + 1]
        has_entry = len(next_ids) > 0
        if has_entry:
            if end == request.prompt_len:
                next_ids.append(-1)
            width = request.params.prompt_logprobs or 0
            self._prompt_logprobs.append((len(self._rows), width, next_ids.tobytes()))
        self.launched.scored.append(Scored(request, has_entry, is_last=end == stay.target))
