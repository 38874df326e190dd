"""Who is on the device: rows and slots of the sequences that run, for one epoch.

Ints only: what the device must be told is the step builder's business, who may enter is admission's.
Legend: G cache groups.
"""

from bisect import insort

from actorllm.cache.sizing import GroupSize
from actorllm.cache.slots import SlotPool
from actorllm.scheduling.request import Sequence

MIN_SHARED = 16
"""Tokens that are worth sharing."""


class Grant:
    """What one admission promised: room for `num_live` sequences that share a prefix of `shared_len` tokens and
    may add `own_len` each. `spare_rows` are kept for choices that have not left the common prompt."""

    __slots__ = ("num_live", "own_len", "shared_len", "spare_rows")

    def __init__(self, *, num_live: int, shared_len: int, own_len: int) -> None:
        self.num_live = num_live
        self.shared_len = shared_len
        self.own_len = own_len
        self.spare_rows: list[int] = []

    def need(self, group: GroupSize, max_step_tokens: int) -> int:
        """The most slots of `group` that these sequences will hold together."""
        alone = group.need(self.shared_len + self.own_len, max_step_tokens)
        return min(self.shared_len + self.num_live * self.own_len, self.num_live * alone)


class Residence:
    """One sequence's stay on the device.

    `slots[g]` are the slots of positions `first[g]` and on. Positions below `num_planned` are computed once the
    launched steps are done; below `target` they are known ids (a prefill), from there on the device's own samples.
    """

    __slots__ = (
        "first",
        "grant",
        "is_leaving",
        "is_opened",
        "num_in_flight",
        "num_planned",
        "row",
        "sequence",
        "slots",
        "target",
    )

    def __init__(self, sequence: Sequence, *, row: int, grant: Grant, target: int, num_groups: int) -> None:
        self.sequence = sequence
        self.row = row
        self.grant = grant
        self.target = target
        self.slots: list[list[int]] = [[] for _ in range(num_groups)]
        self.first = [0] * num_groups
        self.num_planned = 0
        self.num_in_flight = 0
        self.is_opened = False
        self.is_leaving = False

    @property
    def order(self) -> tuple:
        """The sequence's place in the policy's order."""
        return self.sequence.order

    @property
    def wants_token(self) -> bool:
        """Whether the next step may feed the last sample back: unless the one after it would exceed the length."""
        request = self.sequence.request
        return self.target <= self.num_planned < request.prompt_len + request.max_tokens - 1


class Residents:
    """All stays of one epoch, the device rows and the slot pools.

    A stay that ends keeps row and slots until the last launched step that names it is done (`leave`, `landed`).
    """

    def __init__(self, groups: tuple[GroupSize, ...], num_rows: int) -> None:
        self.groups = tuple(group for group in groups if not group.is_state)  # a state lies at its row, which is accounted anyhow
        self._has_states = len(self.groups) < len(groups)
        self.pools = tuple(SlotPool(group.num_slots) for group in self.groups)
        self.running: list[Residence] = []  # in the policy's order, without those that leave
        self._stays: dict[Sequence, Residence] = {}
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._rows_to_close: list[int] = []

    def __len__(self) -> int:
        return len(self._stays)

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._stays

    @property
    def num_free_rows(self) -> int:
        """Rows that `enter` can give."""
        return len(self._free_rows)

    @property
    def num_free_slots(self) -> int:
        """Tokens for which every group has a slot."""
        return min(pool.num_free for pool in self.pools)

    @property
    def num_leaving(self) -> int:
        """Stays that have ended but wait for a step under way."""
        return len(self._stays) - len(self.running)

    def grants(self) -> set[Grant]:
        """The promises that still bind."""
        return {residence.grant for residence in self._stays.values()}

    def enter(self, sequence: Sequence, grant: Grant, *, target: int) -> Residence:
        """Give a row to a sequence whose first `target` ids are to be computed, and spare rows to its siblings."""
        row = self._free_rows.pop()
        grant.spare_rows = [self._free_rows.pop() for _ in range(grant.num_live - 1)]
        return self._add(Residence(sequence, row=row, grant=grant, target=target, num_groups=len(self.pools)))

    def fork(self, first: Residence) -> list[Residence]:
        """Let the siblings of choice 0 in, each with a reference to every slot of the prompt that is still held."""
        siblings = []
        for sequence in first.sequence.request.sequences[1:]:
            row = first.grant.spare_rows.pop()
            stay = Residence(sequence, row=row, grant=first.grant, target=first.target, num_groups=len(self.pools))
            for group, pool in enumerate(self.pools):
                pool.share(first.slots[group])
                stay.slots[group] = first.slots[group].copy()
            stay.first = first.first.copy()
            stay.num_planned = first.num_planned
            siblings.append(self._add(stay))
        return siblings

    def share_prefix(self, stay: Residence) -> int:
        """Let a stay that has computed nothing begin with the longest prefix that a running prompt has in common with its own.

        At least one token is left to compute, to sample from. Returns the number of tokens shared: none where a state would
        have to be shared, too, because a row has only its latest.
        """
        if self._has_states:
            return 0
        lender, shared_len = None, MIN_SHARED - 1
        for other in self.running:
            limit = min(other.num_planned, stay.target - 1)
            if other is not stay and limit > shared_len:
                length = min(limit, stay.sequence.request.key.common_len(other.sequence.request.key))
                if length > shared_len and all(first <= begin for first, begin in zip(other.first, self._begins(length), strict=True)):
                    lender, shared_len = other, length
        if lender is None:
            return 0
        stay.first = self._begins(shared_len)
        for group, (pool, begin) in enumerate(zip(self.pools, stay.first, strict=True)):
            first = lender.first[group]
            stay.slots[group] = lender.slots[group][begin - first : shared_len - first]
            pool.share(stay.slots[group])
        stay.num_planned = shared_len
        return shared_len

    def extend(self, stay: Residence, count: int) -> list[list[int]]:
        """The slots [G][count] of the next `count` positions."""
        taken = []
        for pool, slots in zip(self.pools, stay.slots, strict=True):
            new = pool.allocate(count)
            slots += new
            taken.append(new)
        stay.num_planned += count
        return taken

    def leave(self, sequence: Sequence) -> None:
        """End the stay, if there is one: all of it is free at once, or when the steps that name it have landed."""
        stay = self._stays.get(sequence)
        if stay is None or stay.is_leaving:
            return
        stay.is_leaving = True
        self.running.remove(stay)
        if not stay.num_in_flight:
            self._release(stay)

    def landed(self, stays: list[Residence], seq_lens: list[int]) -> list[Sequence]:
        """A step that took `stays` to `seq_lens` tokens is done. Returns the sequences that are off the device."""
        gone = []
        for stay in stays:
            stay.num_in_flight -= 1
            if stay.is_leaving and not stay.num_in_flight:
                self._release(stay)
                gone.append(stay.sequence)
        for group, size in enumerate(self.groups):
            if size.window is not None:
                self._forget_behind(group, size.window, stays=stays, seq_lens=seq_lens)
        return gone

    def take_rows_to_close(self) -> tuple[int, ...]:
        """Rows that were opened and ended since the last call; the next step must close them."""
        rows, self._rows_to_close = self._rows_to_close, []
        return tuple(rows)

    def _add(self, stay: Residence) -> Residence:
        self._stays[stay.sequence] = stay
        insort(self.running, stay, key=_order)
        return stay

    def _begins(self, seq_len: int) -> list[int]:
        """Per group, the first position that a query at `seq_len` reads."""
        return [0 if group.window is None else max(0, seq_len + 1 - group.window) for group in self.groups]

    def _forget_behind(self, group: int, window: int, *, stays: list[Residence], seq_lens: list[int]) -> None:
        """Release the slots that no query at or after `seq_len` reads: the last `window - 1` are kept."""
        behind: list[int] = []
        for stay, seq_len in zip(stays, seq_lens, strict=True):
            count = seq_len + 1 - window - stay.first[group]
            if count > 0:
                slots = stay.slots[group]
                behind += slots[:count]
                del slots[:count]
                stay.first[group] += count
        self.pools[group].release(behind)

    def _release(self, stay: Residence) -> None:
        for pool, slots in zip(self.pools, stay.slots, strict=True):
            pool.release(slots)
            slots.clear()
        del self._stays[stay.sequence]
        grant = stay.grant
        grant.num_live -= 1
        self._free_rows.append(stay.row)
        if stay.is_opened:
            self._rows_to_close.append(stay.row)
        if grant.spare_rows:  # only choice 0 is here while its siblings have not left the prompt
            self._free_rows += grant.spare_rows
            grant.spare_rows = []


def _order(stay: Residence) -> tuple:
    return stay.order
