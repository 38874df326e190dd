"""The turns of one conversation as a tree: an edited turn and a regenerated answer are siblings of the first one.

User and assistant alternate from the root down; ids grow from parent to child. Knows no model and no socket.
"""

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from actorllm.errors import ChatTooLarge, InvalidRequest, UnknownTurn
from actorllm.server.chat.messages import MAX_TURNS, Reason, Role, Turn


class TurnTree:
    """Turns by id, and the children of each. Roots are the children of None."""

    def __init__(self, turns: Iterable[Turn] = ()) -> None:
        """Raises `InvalidRequest` for turns that make no tree."""
        self._turns: dict[int, Turn] = {}
        self._children: dict[int | None, list[int]] = {None: []}
        self._pieces: dict[int, list[str]] = {}
        """What running answers have said so far."""
        self._last_id = 0
        for turn in turns:
            self._check(turn)
            self._insert(turn)

    def __len__(self) -> int:
        return len(self._turns)

    def __getitem__(self, turn_id: int) -> Turn:
        """Raises `UnknownTurn`."""
        if turn_id not in self._turns:
            raise UnknownTurn(f"there is no turn {turn_id} in this conversation; `pick` shows those it has", param="turn")
        pieces = self._pieces.get(turn_id)
        turn = self._turns[turn_id]
        return turn if pieces is None else replace(turn, text="".join(pieces))

    def turns(self) -> list[Turn]:
        """All turns, parents before children."""
        return [self[turn_id] for turn_id in self._turns]

    def path(self, leaf: int | None) -> Sequence[Turn]:
        """The turns from the root to `leaf`; none for None."""
        path: list[Turn] = []
        while leaf is not None:
            path.append(self[leaf])
            leaf = path[-1].parent
        return path[::-1]

    def newest_leaf(self, turn_id: int) -> int:
        """The leaf that is reached by the newest child of each turn."""
        turn_id = self[turn_id].id
        while children := self._children[turn_id]:
            turn_id = children[-1]
        return turn_id

    @property
    def title(self) -> str:
        """The beginning of the first turn; "" without turns."""
        return " ".join(self[self._children[None][0]].text[:200].split())[:60] if self._children[None] else ""

    def check_room(self, num_turns: int) -> None:
        """Raises `ChatTooLarge` if so many more turns cannot be added."""
        if self._last_id + num_turns > MAX_TURNS:
            raise ChatTooLarge(f"a conversation has at most {MAX_TURNS} turns; open another one")

    def add(self, parent: int | None, *, role: Role, text: str = "") -> Turn:
        """A new turn after `parent`; the caller knows that the roles alternate and that there is room."""
        turn = Turn(id=self._last_id + 1, parent=parent, role=role, text=text)
        self._insert(turn)
        if role == "assistant":
            self._pieces[turn.id] = []
        return turn

    def extend(self, turn_id: int, text: str) -> None:
        """More text of a running answer."""
        self._pieces[turn_id].append(text)

    def finish(self, turn_id: int, reason: Reason) -> None:
        """The end of a running answer."""
        self._turns[turn_id] = replace(self[turn_id], finish=reason)
        del self._pieces[turn_id]

    def _insert(self, turn: Turn) -> None:
        self._turns[turn.id] = turn
        self._last_id = turn.id
        self._children[turn.id] = []
        self._children[turn.parent].append(turn.id)

    def _check(self, turn: Turn) -> None:
        where = f"turns: turn {turn.id}"
        if turn.id <= self._last_id:
            raise InvalidRequest(f"{where} comes after a turn with the same or a larger id; sort them", param="turns")
        if turn.parent is not None and turn.parent not in self._turns:
            raise InvalidRequest(f"{where} has the parent {turn.parent}, which does not come before it", param="turns")
        before: Role = "assistant" if turn.parent is None else self._turns[turn.parent].role
        if turn.role == before:
            raise InvalidRequest(f"{where}: user and assistant must alternate, beginning with user", param="turns")
        if (turn.finish is None) == (turn.role == "assistant"):
            raise InvalidRequest(f"{where}: an answer has a finish, a user's turn has none", param="turns")
