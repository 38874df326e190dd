"""The conversations of one chat socket as a state machine: a client's message goes in, messages and orders come out.

A conversation is in one of three phases:

    IDLE --- send, edit, regenerate ---> ANSWERING --- cancel ---> CANCELLING
      ^                                      |                         |
      +---- the answer's end: `finish` ------+-------------------------+

and `PHASES` says which messages each phase takes. A message that is refused changes nothing. Knows no transport, no tasks and
no engine: whoever drives it carries out `StartAnswer` and `StopAnswer`, and reports by `extend` and `finish`.
"""

from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from actorllm.errors import AnswerRunning, ChatTooLarge, InvalidRequest, NoAnswerRunning, UnknownConversation
from actorllm.messages import ChatPrompt, SamplingParams
from actorllm.server.chat.messages import (
    Cancel,
    Close,
    Closed,
    Configure,
    Configured,
    Conversation,
    Conversations,
    Delta,
    Edit,
    Finished,
    FromClient,
    FromServer,
    ListConversations,
    NewTurn,
    Open,
    Pick,
    Reason,
    Regenerate,
    Select,
    Selected,
    Send,
    Started,
    Summary,
    Timings,
    Trouble,
    Turn,
    Usage,
)
from actorllm.server.chat.tree import TurnTree

MAX_CONVERSATIONS = 64
MAX_CHARS = 4 * 2**20
"""Characters of all turns and system texts of one socket; a running answer may still end beyond it."""


class StartAnswer(Struct, frozen=True, kw_only=True):
    """Order: generate the answer that is turn `turn`."""

    conversation: str
    turn: int
    prompt: ChatPrompt
    params: SamplingParams


class StopAnswer(Struct, frozen=True, kw_only=True):
    """Order: end the answer; its `finish` is still awaited."""

    conversation: str
    turn: int


Effect = FromServer | StartAnswer | StopAnswer
Addressed = Send | Edit | Regenerate | Cancel | Select | Configure | Pick | Close
"""Messages to one conversation that is open."""


class Phase(Enum):
    """What a conversation is doing."""

    IDLE = "idle"
    ANSWERING = "answering"
    CANCELLING = "cancelling"


ALWAYS = frozenset(Phase)
PHASES: dict[type, frozenset[Phase]] = {
    Send: frozenset({Phase.IDLE}),
    Edit: frozenset({Phase.IDLE}),
    Regenerate: frozenset({Phase.IDLE}),
    Select: frozenset({Phase.IDLE}),
    Close: frozenset({Phase.IDLE}),
    Cancel: frozenset({Phase.ANSWERING}),
    Configure: ALWAYS,
    Pick: ALWAYS,
}


class OpenConversation:
    """One conversation: its tree, its settings and its phase. `answering` is the running answer's turn."""

    def __init__(self, message: Open) -> None:
        self.name = message.conversation
        self.system = message.system
        self.sampling = message.sampling
        self.tree = TurnTree(message.turns)
        self.leaf = self.tree[message.leaf].id if message.leaf is not None else max((turn.id for turn in message.turns), default=None)
        self.phase = Phase.IDLE
        self.answering: int | None = None
        self.cancel_ref: str | None = None

    @property
    def num_chars(self) -> int:
        """Characters that are kept."""
        return len(self.system or "") + sum(len(turn.text) for turn in self.tree.turns())

    def prompt(self, leaf: int) -> ChatPrompt:
        """The branch down to `leaf` for the chat template."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return ChatPrompt([*system, *({"role": turn.role, "content": turn.text} for turn in self.tree.path(leaf))])

    def shown(self) -> Conversation:
        """All of it."""
        return Conversation(
            conversation=self.name,
            system=self.system,
            sampling=self.sampling,
            turns=self.tree.turns(),
            leaf=self.leaf,
            answering=self.answering,
        )

    def summary(self) -> Summary:
        """A line of a list."""
        return Summary(
            conversation=self.name,
            title=self.tree.title,
            num_turns=len(self.tree),
            is_answering=self.phase is not Phase.IDLE,
        )


class ChatSession:
    """The conversations of one socket. `defaults` are the sampling parameters of fields that a client leaves out."""

    def __init__(self, defaults: SamplingParams) -> None:
        self._defaults = defaults
        self._conversations: dict[str, OpenConversation] = {}

    @property
    def is_answering(self) -> bool:
        """Whether any answer runs."""
        return any(conversation.phase is not Phase.IDLE for conversation in self._conversations.values())

    def stops_an_answer(self, message: FromClient) -> bool:
        """Whether this is a `cancel` that will be obeyed. It costs no reply: the answer's `finished` comes anyway."""
        if not isinstance(message, Cancel) or message.conversation not in self._conversations:
            return False
        return self._conversations[message.conversation].phase is Phase.ANSWERING

    def handle(self, message: FromClient) -> list[Effect]:
        """What a message of the client leads to; the first reply carries its `ref`.

        Raises `ChatError` or `InvalidRequest`, after which everything is as before.
        """
        effects: list[Effect]
        match message:
            case Open():
                effects = self._open(message)
            case ListConversations():
                effects = [Conversations(conversations=[each.summary() for each in self._conversations.values()])]
            case _:
                effects = self._handle_in(self._at(message), message)
        if message.ref is not None and effects and not isinstance(effects[0], StartAnswer | StopAnswer):
            effects[0] = replace(effects[0], ref=message.ref)
        return effects

    def extend(self, name: str, turn: int, text: str) -> Delta:
        """More text of the running answer."""
        self._conversations[name].tree.extend(turn, text)
        return Delta(conversation=name, turn=turn, text=text)

    def finish(
        self, name: str, turn: int, *, reason: Reason, usage: Usage, timings: Timings, error: Trouble | None = None
    ) -> Finished:
        """The end of the running answer; the conversation is idle again."""
        conversation = self._conversations[name]
        conversation.tree.finish(turn, reason)
        conversation.phase, conversation.answering = Phase.IDLE, None
        finished = Finished(conversation=name, turn=turn, reason=reason, usage=usage, timings=timings, error=error)
        ref, conversation.cancel_ref = conversation.cancel_ref, None
        return finished if ref is None else replace(finished, ref=ref)

    # --- one message each ---

    def _handle_in(self, conversation: OpenConversation, message: Addressed) -> list[Effect]:
        match message:
            case Send():
                return self._say(conversation, conversation.leaf, message.text)
            case Edit():
                edited = _turn_of(conversation, message.turn, role="user")
                return self._say(conversation, edited.parent, message.text)
            case Regenerate():
                turn = conversation.tree[message.turn]
                question = turn.id if turn.role == "user" else turn.parent
                assert question is not None  # an answer has a parent
                conversation.tree.check_room(1)
                self._check_chars(0)
                return self._start(conversation, question)
            case Cancel():
                assert conversation.answering is not None
                conversation.phase, conversation.cancel_ref = Phase.CANCELLING, message.ref
                return [StopAnswer(conversation=conversation.name, turn=conversation.answering)]
            case Select():
                conversation.leaf = conversation.tree.newest_leaf(message.turn)
                return [Selected(conversation=conversation.name, leaf=conversation.leaf)]
            case Configure():
                return [self._configure(conversation, message)]
            case Close():
                del self._conversations[conversation.name]
                return [Closed(conversation=conversation.name)]
            case Pick():
                return [conversation.shown()]

    def _open(self, message: Open) -> list[Effect]:
        if message.conversation in self._conversations:
            raise InvalidRequest(f"the conversation {message.conversation!r} is open already", param="conversation")
        if len(self._conversations) == MAX_CONVERSATIONS:
            raise ChatTooLarge(f"a socket has at most {MAX_CONVERSATIONS} conversations; close one")
        message.sampling.params(self._defaults)
        conversation = OpenConversation(message)
        self._check_chars(conversation.num_chars)
        self._conversations[conversation.name] = conversation
        return [conversation.shown()]

    def _say(self, conversation: OpenConversation, parent: int | None, text: str) -> list[Effect]:
        """A new turn of the user, and the answer to it."""
        if not text.strip():
            raise InvalidRequest("text is empty; say something", param="text")
        if parent is not None and conversation.tree[parent].role == "user":
            raise InvalidRequest("the last turn has no answer yet: regenerate it, or edit it", param="conversation")
        conversation.tree.check_room(2)
        self._check_chars(len(text))
        turn = conversation.tree.add(parent, role="user", text=text)
        return [NewTurn(conversation=conversation.name, turn=turn), *self._start(conversation, turn.id)]

    def _start(self, conversation: OpenConversation, question: int) -> list[Effect]:
        """An answer to the user's turn `question`."""
        prompt = conversation.prompt(question)
        turn = conversation.tree.add(question, role="assistant")
        conversation.phase, conversation.answering, conversation.leaf = Phase.ANSWERING, turn.id, turn.id
        params = conversation.sampling.params(self._defaults)
        return [
            Started(conversation=conversation.name, turn=turn.id, parent=question),
            StartAnswer(conversation=conversation.name, turn=turn.id, prompt=prompt, params=params),
        ]

    def _configure(self, conversation: OpenConversation, message: Configure) -> Configured:
        message.sampling.params(self._defaults)
        self._check_chars(len(message.system or "") - len(conversation.system or ""))
        conversation.system, conversation.sampling = message.system, message.sampling
        return Configured(conversation=conversation.name, system=message.system, sampling=message.sampling)

    # --- checks ---

    def _at(self, message: Addressed) -> OpenConversation:
        """The conversation that a message names, if its phase takes the message."""
        name = message.conversation
        if name not in self._conversations:
            raise UnknownConversation(f"there is no conversation {name!r} on this socket; open it first", param="conversation")
        conversation = self._conversations[name]
        if conversation.phase not in PHASES[type(message)]:
            if isinstance(message, Cancel):
                raise NoAnswerRunning("no answer is running that could be cancelled", param="conversation")
            raise AnswerRunning("an answer is running in this conversation; wait for its end or cancel it", param="conversation")
        return conversation

    def _check_chars(self, num_more: int) -> None:
        kept = sum(conversation.num_chars for conversation in self._conversations.values())
        if num_more >= 0 and kept + num_more > MAX_CHARS:
            raise ChatTooLarge(f"a socket holds at most {MAX_CHARS} characters; close a conversation")


def _turn_of(conversation: OpenConversation, turn_id: int, *, role: str) -> Turn:
    turn = conversation.tree[turn_id]
    if turn.role != role:
        raise InvalidRequest(f"turn {turn_id} is not the {role}'s; only a {role}'s turn can be edited", param="turn")
    return turn
