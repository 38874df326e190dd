"""A device without tensors: runs `Step` messages on a model of rows and slots, and checks that each may be run.

Its language model is a hash: the next token is a fixed function of all ids before it, of the output position and of the
row's seed, so a slot that holds another sequence's token changes the text. `continuation` computes the same by brute
force for one sequence alone. Every breach of the messages' contract raises `StepRefused`, an AssertionError.
Legend: T tokens of the flat batch, R rows in it, G cache groups.
"""

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from actorllm.cache.sizing import GroupSize
from actorllm.messages import RowOpen, RowSampling, Step, StepDone, TopLogprobs, pack, unpack

NextToken = Callable[[int, int, RowSampling], int]
"""(state after the last token, output position, sampling) -> id"""

_MASK = 2**64 - 1
_START = 0x9E3779B97F4A7C15


class StepRefused(AssertionError):
    """A step breaks the contract of messages.py."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a slot holds: the position, and the state of the sequence up to and with its token."""

    position: int
    state: int


@dataclass(slots=True)
class FakeRow:
    """One open device row. `tables[g]` maps positions to slots, `states` positions to the states that are due."""

    sampling: RowSampling
    num_outputs: int
    tables: list[dict[int, int]]
    states: dict[int, int] = field(default_factory=dict)
    seq_len: int = 0
    last_id: int | None = None


class FakeDevice:
    """`num_rows` rows over pools of `groups`. Rows and slots are forgotten when the epoch changes."""

    def __init__(
        self,
        groups: Iterable[GroupSize],
        *,
        num_rows: int,
        max_step_tokens: int,
        vocab_size: int = 97,
        next_token: NextToken | None = None,
    ) -> None:
        self._groups = tuple(groups)
        self._num_rows = num_rows
        self._max_step_tokens = max_step_tokens
        self._vocab_size = vocab_size
        self._next_token = next_token or hashed_token(vocab_size)
        self._epoch: int | None = None
        self._number = 0
        self.rows: dict[int, FakeRow] = {}
        self.slots: list[dict[int, Held]] = []
        self.num_mixed_steps = 0

    def run(self, step: Step) -> StepDone:
        """Check and compute one step."""
        self._start(step)
        for row in step.closed:
            _check(row in self.rows, f"row {row} is closed but not open")
            del self.rows[row]
        for opened in step.opened:
            self._open(opened)
        heirs = [opened for opened in step.opened if any(opened.slots)]
        computing = set(unpack(step.rows))
        for opened in heirs:
            if opened.row in computing:
                self._inherit(opened)
        states = self._forward(step)
        for opened in heirs:
            if opened.row not in computing:
                self._inherit(opened)
        return StepDone(
            epoch=step.epoch,
            number=step.number,
            prompt_logprobs=tuple(self._score(width, next_ids) for _, width, next_ids in step.prompt_logprobs),
            **self._sample(step, states),
        )

    def _start(self, step: Step) -> None:
        if step.epoch != self._epoch:
            self._epoch, self._number = step.epoch, 0
            self.rows = {}
            self.slots = [{} for _ in self._groups]
        _check(step.number == self._number + 1, f"step {step.number} follows step {self._number}")
        self._number = step.number
        query_lens = unpack(step.query_lens)
        num_tokens = len(unpack(step.token_ids))
        _check(0 < num_tokens <= self._max_step_tokens, f"a step of {num_tokens} tokens")
        _check(sum(query_lens) == num_tokens, "query_lens do not add up to the tokens")
        _check(len(step.rows) == len(step.query_lens) == len(step.seq_lens), "rows of unequal counts")
        _check(len(step.write_slots) == len(self._groups), "write_slots of another number of groups")
        self.num_mixed_steps += min(query_lens) == 1 and -1 in unpack(step.token_ids) and max(query_lens) > 1

    def _open(self, opened: RowOpen) -> None:
        _check(0 <= opened.row < self._num_rows, f"there is no row {opened.row}")
        _check(opened.row not in self.rows, f"row {opened.row} is opened twice")
        tables: list[dict[int, int]] = []
        for start, data in zip(opened.prefix_start, opened.slots, strict=True):
            tables.append({start + index: slot for index, slot in enumerate(unpack(data))})
        ends = {max(table) + 1 for table in tables if table}
        _check(len(ends) <= 1, "the shared prefixes of the groups end at different positions")
        row = FakeRow(opened.sampling, len(unpack(opened.output_ids)), tables)
        row.seq_len = ends.pop() if ends else 0
        for group, table in enumerate(tables):
            is_whole = all(position in table for position in self._reach(group, row.seq_len))
            _check(is_whole, f"row {opened.row} lacks slots of the prefix that it reads in group {group}")
        self.rows[opened.row] = row

    def _forward(self, step: Step) -> list[int]:
        """The states [T] after each token. Slots are written first, then read, as on a real device."""
        token_ids, positions = unpack(step.token_ids), unpack(step.positions)
        rows, query_lens, seq_lens = unpack(step.rows), unpack(step.query_lens), unpack(step.seq_lens)
        write_slots = [unpack(slots) for slots in step.write_slots]
        _check(len(set(rows)) == len(rows), "a row has two entries in one step")
        for group, slots in enumerate(write_slots):
            _check(len(slots) == len(token_ids) == len(set(slots)), "not one slot of its own for every token")
            _check(all(0 <= slot < self._groups[group].num_slots for slot in slots), "a slot outside of the pool")
        readers = self._readers()
        states: list[int] = []
        start = 0
        for name, query_len, seq_len in zip(rows, query_lens, seq_lens, strict=True):
            _check(name in self.rows, f"row {name} computes but is not open")
            row = self.rows[name]
            tokens = range(start, start + query_len)
            _check(seq_len == row.seq_len + query_len, f"row {name} holds {row.seq_len} tokens, not {seq_len - query_len}")
            _check(list(positions[start : start + query_len]) == list(range(row.seq_len, seq_len)), "positions jump")
            for token in tokens:
                states.append(self._enter(row, token_ids[token]))
                for group, slots in enumerate(write_slots):
                    self._write(row, group, slot=slots[token], readers=readers[group].get(slots[token], []))
                row.seq_len += 1
            start += query_len
        for name, query_len in zip(rows, query_lens, strict=True):
            self._check_reads(name, query_len)
        return states

    def _enter(self, row: FakeRow, token_id: int) -> int:
        """The state after one more token of the row; -1 is its last sample, and must be used for that one."""
        _check((token_id == -1) == (row.last_id is not None), "a sample is fed back by id, or one that is not there")
        if row.last_id is not None:
            token_id = max(row.last_id, 0)
        before = row.states[row.seq_len - 1] if row.seq_len else _START
        state = row.states[row.seq_len] = next_state(before, token_id)
        return state

    def _readers(self) -> list[dict[int, list[tuple[FakeRow, int]]]]:
        """For each group, by slot: the rows that will read it, and as which position."""
        readers: list[dict[int, list[tuple[FakeRow, int]]]] = [{} for _ in self._groups]
        for row in self.rows.values():
            for group, table in enumerate(row.tables):
                for position in self._reach(group, row.seq_len):
                    readers[group].setdefault(table[position], []).append((row, position))
        return readers

    def _write(self, row: FakeRow, group: int, *, slot: int, readers: list[tuple[FakeRow, int]]) -> None:
        """The row's next token takes a slot, which nobody else may read: unless they share this very token."""
        position = row.seq_len
        for reader, place in readers:
            is_new_sibling = place == position and not reader.states
            _check(is_new_sibling, f"slot {slot} is written while a row reads it as position {place}")
        row.tables[group][position] = slot
        self.slots[group][slot] = Held(position, row.states[position])

    def _check_reads(self, name: int, query_len: int) -> None:
        """Every position that the row's queries read holds the row's own token."""
        row = self.rows[name]
        for group in range(len(self._groups)):
            first = self._reach(group, row.seq_len - query_len).start
            for position in range(first, row.seq_len):
                held = self.slots[group].get(row.tables[group].get(position, -1))
                due = Held(position, row.states[position])
                _check(held == due, f"row {name}, position {position}, group {group}: the slot holds {held}, not {due}")

    def _reach(self, group: int, seq_len: int) -> range:
        """The positions of a sequence of `seq_len` tokens that its next query reads."""
        window = self._groups[group].window
        return range(0 if window is None else max(0, seq_len + 1 - window), seq_len)

    def _inherit(self, opened: RowOpen) -> None:
        """A row learns the states of its prefix from the slots it shares: a sibling when choice 0 has written them, a row that
        goes on from there before it does."""
        row = self.rows[opened.row]
        for group, table in enumerate(row.tables):
            for position, slot in table.items():
                held = self.slots[group].get(slot)
                _check(held is not None and held.position == position, "a shared slot holds another position")
                if held is not None:
                    _check(row.states.setdefault(position, held.state) == held.state, "groups share different prefixes")

    def _sample(self, step: Step, states: list[int]) -> dict:
        ids: list[int] = []
        logprobs: list[TopLogprobs | None] = []
        entries = unpack(step.sample_rows), unpack(step.sample_to), unpack(step.sample_positions)
        _check(len(set(entries[1])) == len(entries[1]), "a row samples twice in one step")
        for token, name, position in zip(*entries, strict=True):
            row = self.rows[name]
            _check(row.states[row.seq_len - 1] == states[token], f"row {name} samples from another row's token")
            _check(position == row.num_outputs, f"row {name} samples output {position}, not {row.num_outputs}")
            row.num_outputs += 1
            row.last_id = self._next_token(states[token], position, row.sampling)
            ids.append(row.last_id)
            width = row.sampling.logprobs
            logprobs.append(None if width is None else fake_logprobs([row.last_id], width, self._vocab_size))
        return {"sampled": pack(ids), "logprobs": tuple(logprobs) if any(logprobs) else ()}

    def _score(self, width: int, next_ids: bytes) -> TopLogprobs:
        return fake_logprobs([token_id for token_id in unpack(next_ids) if token_id >= 0], width, self._vocab_size)


def next_state(state: int, token_id: int) -> int:
    """The state after one more token: a 64-bit hash of everything up to it (splitmix64's mixing)."""
    mixed = (state * 0xBF58476D1CE4E5B9 + token_id + 1) & _MASK
    mixed ^= mixed >> 30
    mixed = mixed * 0x94D049BB133111EB & _MASK
    return mixed ^ (mixed >> 31)


def hashed_token(vocab_size: int) -> NextToken:
    """The default language model: all ids are equally likely; `banned_ids` are avoided below `min_tokens`."""

    def next_token(state: int, position: int, sampling: RowSampling) -> int:
        token_id = next_state(state ^ (sampling.seed & _MASK), position) % vocab_size
        while position < sampling.min_tokens and token_id in sampling.banned_ids:
            token_id = (token_id + 1) % vocab_size
        return token_id

    return next_token


def continuation(prompt_ids: Iterable[int], count: int, *, sampling: RowSampling, next_token: NextToken) -> list[int]:
    """The first `count` output ids of one sequence that has the device for itself; nothing ends it earlier."""
    state = _START
    for token_id in prompt_ids:
        state = next_state(state, token_id)
    output_ids: list[int] = []
    for position in range(count):
        output_ids.append(next_token(state, position, sampling))
        state = next_state(state, output_ids[-1])
    return output_ids


def fake_logprobs(token_ids: list[int], width: int, vocab_size: int) -> TopLogprobs:
    """Logprobs that tell which token they belong to: -id for the token, and -id - i for its i-th rival id + i."""
    rivals = [(token_id + index) % vocab_size for token_id in token_ids for index in range(width)]
    return TopLogprobs(
        width=width,
        chosen=_floats(-token_id for token_id in token_ids),
        ids=pack(rivals),
        values=_floats(-token_id - index for token_id in token_ids for index in range(width)),
    )


def _floats(values: Iterable[float]) -> bytes:
    return array("f", values).tobytes()


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise StepRefused(message)
