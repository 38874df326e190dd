"""Who waits: new requests and paused sequences in the policy's order, and the deadlines of all requests.

Knows no slots and no steps.
"""

import heapq
from bisect import bisect_left

from actorllm.errors import QueueTimeout, RequestTimeout
from actorllm.scheduling.request import Request, RequestTable, Sequence


class WaitingQueue:
    """Sequences that wait to enter the device, lowest order first.

    A new request waits as its choice 0. A request counts as paused from its first step on.
    """

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self.num_paused = 0

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def num_new(self) -> int:
        """Requests that have never run."""
        return len(self._sequences) - self.num_paused

    @property
    def first(self) -> Sequence:
        """The one whose turn is next."""
        return self._sequences[0]

    def push(self, sequence: Sequence) -> None:
        """Enter at the place that the order gives."""
        place = bisect_left(self._sequences, sequence.order, key=_order)
        self._sequences.insert(place, sequence)
        self.num_paused += sequence.request.scheduled is not None

    def remove(self, sequence: Sequence) -> bool:
        """Take a sequence out wherever it is; False when it does not wait."""
        place = bisect_left(self._sequences, sequence.order, key=_order)
        if place == len(self._sequences) or self._sequences[place] is not sequence:
            return False
        del self._sequences[place]
        self.num_paused -= sequence.request.scheduled is not None
        return True


class Deadlines:
    """The times at which requests of the table run out of patience, earliest first.

    Entries of requests that ended are dropped when they come up, or when they are the most.
    """

    def __init__(self, table: RequestTable) -> None:
        self._table = table
        self._heap: list[tuple[float, int, bool, str]] = []
        for request in table:
            self.add(request)

    def add(self, request: Request) -> None:
        """Watch the deadlines of `request`."""
        if len(self._heap) > 4 * len(self._table) + 64:
            self._heap = [entry for entry in self._heap if self._live(entry) is not None]
            heapq.heapify(self._heap)
        for deadline, is_waiting in ((request.wait_deadline, True), (request.run_deadline, False)):
            if deadline is not None:
                heapq.heappush(self._heap, (deadline, request.number, is_waiting, request.request_id))

    def next(self) -> float | None:
        """The earliest deadline that still counts, monotonic seconds."""
        while self._heap and self._live(self._heap[0]) is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_expired(self, now: float) -> list[Request]:
        """Unfinished requests whose deadline is at or before `now`, once each time one passes."""
        expired = []
        while self._heap and self._heap[0][0] <= now:
            request = self._live(heapq.heappop(self._heap))
            if request is not None:
                expired.append(request)
        return expired

    def _live(self, entry: tuple[float, int, bool, str]) -> Request | None:
        """The request for which the entry still counts: a waiting deadline ends with the first step."""
        _, number, is_waiting, request_id = entry
        request = self._table.get(request_id)
        if request is None or request.number != number or request.is_finished:
            return None
        return None if is_waiting and request.scheduled is not None else request


def too_late(request: Request, now: float) -> QueueTimeout | RequestTimeout:
    """The error of a request whose deadline has passed."""
    waited = now - request.arrived
    if request.scheduled is None:
        return QueueTimeout(f"the request waited {waited:.1f} s without running; try again later")
    return RequestTimeout(f"the request did not finish within its deadline, {waited:.1f} s after it arrived")


def _order(sequence: Sequence) -> tuple:
    return sequence.order
