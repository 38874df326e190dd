"""The chat session under random sequences of messages, against a model of it that keeps plain lists."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actorllm.errors import (
    ActorLLMError,
    AnswerRunning,
    ChatTooLarge,
    InvalidRequest,
    MalformedFrame,
    NoAnswerRunning,
    UnknownConversation,
    UnknownTurn,
)
from actorllm.messages import SamplingParams
from actorllm.server.chat import messages as protocol
from actorllm.server.chat.frames import JSON_FRAMES, MSGPACK_FRAMES
from actorllm.server.chat.messages import FromClient, Open, Sampling, Turn
from actorllm.server.chat.outbox import MAX_WAITING_BYTES
from actorllm.server.chat.session import MAX_CHARS, MAX_CONVERSATIONS, ChatSession, StartAnswer, StopAnswer
from actorllm.server.chat.socket import IDLE
from actorllm.settings import ServerSettings

NAMES = st.sampled_from(("a", "b", "c"))
IDS = st.integers(1, 9)
TEXTS = st.sampled_from(("", " ", "hello", "x" * 50, "\u00e9\U0001f600"))
SAMPLINGS = st.sampled_from((Sampling(), Sampling(temperature=0.5, max_tokens=3), Sampling(temperature=-1.0)))
USAGE = protocol.Usage(prompt_tokens=1, completion_tokens=1)
TIMINGS = protocol.Timings(total_seconds=1.0)
MESSAGES = st.one_of(
    st.builds(protocol.Open, conversation=NAMES, system=st.none() | TEXTS, sampling=SAMPLINGS),
    st.builds(protocol.Send, conversation=NAMES, text=TEXTS),
    st.builds(protocol.Edit, conversation=NAMES, turn=IDS, text=TEXTS),
    st.builds(protocol.Regenerate, conversation=NAMES, turn=IDS),
    st.builds(protocol.Cancel, conversation=NAMES, ref=st.none() | st.just("r")),
    st.builds(protocol.Select, conversation=NAMES, turn=IDS),
    st.builds(protocol.Configure, conversation=NAMES, system=st.none() | TEXTS, sampling=SAMPLINGS),
    st.builds(protocol.ListConversations),
    st.builds(protocol.Pick, conversation=NAMES),
    st.builds(protocol.Close, conversation=NAMES),
)


class Plain:
    """What a conversation must be: turns as [id, parent, role, text, finish], the leaf, and the running turn."""

    def __init__(self, system: str | None) -> None:
        self.system = system
        self.turns: list[list] = []
        self.leaf: int | None = None
        self.running: int | None = None
        self.is_cancelled = False

    def find(self, turn_id: int | None) -> list | None:
        return next((turn for turn in self.turns if turn[0] == turn_id), None)

    def add(self, parent: int | None, role: str, text: str) -> int:
        self.turns.append([len(self.turns) + 1, parent, role, text, None])
        return len(self.turns)

    def history(self, turn_id: int | None) -> list[dict]:
        """The branch as chat messages, by walking up."""
        above = self.find(turn_id)
        if above is None:
            return [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*self.history(above[1]), {"role": above[2], "content": above[3]}]

    def answer(self, question: int) -> None:
        self.leaf = self.running = self.add(question, "assistant", "")
        self.is_cancelled = False


class SessionMachine(RuleBasedStateMachine):
    """Every message at every moment: either it does what the plain model does, or it is refused and nothing has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.session = ChatSession(SamplingParams())
        self.plain: dict[str, Plain] = {}

    @rule(message=MESSAGES)
    def send(self, message: FromClient) -> None:
        before = self.everything()
        expected = self.refusal(message)
        try:
            effects = self.session.handle(message)
        except ActorLLMError as error:
            assert type(error) is expected, error
            assert self.everything() == before
            return
        assert expected is None
        self.carry_out(message, effects)

    @rule(name=NAMES, text=st.text(max_size=5))
    def token(self, name: str, text: str) -> None:
        plain = self.plain.get(name)
        if plain and plain.running:
            assert self.session.extend(name, plain.running, text).text == text
            plain.turns[plain.running - 1][3] += text

    @rule(name=NAMES, reason=st.sampled_from(("stop", "length", "error")))
    def end(self, name: str, reason: str) -> None:
        plain = self.plain.get(name)
        if plain and plain.running:
            reason = "cancel" if plain.is_cancelled else reason
            finished = self.session.finish(name, plain.running, reason=reason, usage=USAGE, timings=TIMINGS)  # type: ignore[arg-type]
            assert (finished.turn, finished.reason) == (plain.running, reason)
            plain.turns[plain.running - 1][4], plain.running = reason, None

    def refusal(self, message: FromClient) -> type[ActorLLMError] | None:
        """The error that the plain model expects."""
        name = getattr(message, "conversation", None)
        plain = self.plain.get(name) if name else None
        wrong_sampling = getattr(message, "sampling", Sampling()).temperature == -1.0
        turn = plain.find(getattr(message, "turn", None)) if plain else None
        match message:
            case protocol.ListConversations():
                return None
            case protocol.Open():
                return InvalidRequest if plain or wrong_sampling else None
        if plain is None:
            return UnknownConversation
        if isinstance(message, protocol.Cancel):
            return None if plain.running and not plain.is_cancelled else NoAnswerRunning
        if plain.running and not isinstance(message, protocol.Pick | protocol.Configure):
            return AnswerRunning
        if hasattr(message, "turn") and turn is None:
            return UnknownTurn
        if isinstance(message, protocol.Edit) and turn and turn[2] == "assistant":
            return InvalidRequest
        is_empty = not getattr(message, "text", "x").strip()
        return InvalidRequest if is_empty or wrong_sampling else None

    def carry_out(self, message: FromClient, effects: list) -> None:
        """Do to the plain model what the message asks for, and compare the effects."""
        kinds = [type(effect).__name__ for effect in effects]
        match message:
            case protocol.Open(conversation=name, system=system):
                self.plain[name] = Plain(system)
                assert kinds == ["Conversation"]
            case protocol.ListConversations():
                assert [each.conversation for each in effects[0].conversations] == list(self.plain)
            case protocol.Close(conversation=name):
                del self.plain[name]
                assert kinds == ["Closed"]
            case protocol.Pick():
                assert kinds == ["Conversation"]
            case protocol.Configure(conversation=name, system=system):
                self.plain[name].system = system
                assert kinds == ["Configured"]
            case protocol.Cancel(conversation=name):
                self.plain[name].is_cancelled = True
                assert effects == [StopAnswer(conversation=name, turn=self.plain[name].running or 0)]
            case protocol.Select(conversation=name, turn=turn):
                plain = self.plain[name]
                while children := [each[0] for each in plain.turns if each[1] == turn]:
                    turn = max(children)
                plain.leaf = turn
                assert kinds == ["Selected"]
            case protocol.Send() | protocol.Edit() | protocol.Regenerate():
                self.carry_out_turn(message, effects, kinds)

    def carry_out_turn(self, message, effects: list, kinds: list[str]) -> None:
        plain = self.plain[message.conversation]
        if isinstance(message, protocol.Regenerate):
            turn = plain.find(message.turn)
            assert turn is not None and kinds == ["Started", "StartAnswer"]
            question = turn[0] if turn[2] == "user" else turn[1]
        else:
            edited = plain.find(message.turn) if isinstance(message, protocol.Edit) else None
            question = plain.add(edited[1] if edited else plain.leaf, "user", message.text)
            assert kinds == ["NewTurn", "Started", "StartAnswer"]
        plain.answer(question)
        order = effects[-1]
        assert (order.conversation, order.turn) == (message.conversation, plain.running)
        assert order.prompt.messages == plain.history(question)

    def everything(self) -> list:
        return [self.session.handle(protocol.Pick(conversation=name)) for name in self.plain]

    @invariant()
    def equals_the_plain_model(self) -> None:
        for name, plain in self.plain.items():
            [shown] = self.session.handle(protocol.Pick(conversation=name))
            assert isinstance(shown, protocol.Conversation)
            assert [[turn.id, turn.parent, turn.role, turn.text, turn.finish] for turn in shown.turns] == plain.turns
            assert (shown.leaf, shown.answering, shown.system) == (plain.leaf, plain.running, plain.system)
        assert self.session.is_answering == any(plain.running for plain in self.plain.values())

    @invariant()
    def can_be_brought_to_another_socket(self) -> None:
        for name, plain in self.plain.items():
            [shown] = self.session.handle(protocol.Pick(conversation=name))
            if not isinstance(shown, protocol.Conversation) or plain.running:
                continue
            again = Open(conversation=name, system=shown.system, sampling=shown.sampling, turns=shown.turns, leaf=shown.leaf)
            for frames in (JSON_FRAMES, MSGPACK_FRAMES):
                message = frames.decode(frames.encode(again))  # type: ignore[arg-type]
                assert ChatSession(SamplingParams()).handle(message) == [shown]


TestSession = SessionMachine.TestCase
TestSession.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("frames", [JSON_FRAMES, MSGPACK_FRAMES])
@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_malformed(frames, data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        frames.decode(data)


@settings(max_examples=200, deadline=None)
@given(message=MESSAGES, cut=st.floats(0, 0.99))
def test_half_a_frame_is_malformed(message: FromClient, cut: float) -> None:
    for frames in (JSON_FRAMES, MSGPACK_FRAMES):
        whole = frames.encode(message)  # type: ignore[arg-type]
        assert frames.decode(whole) == message
        with pytest.raises(MalformedFrame):
            frames.decode(whole[: int(len(whole) * cut)])


QUESTION, ANSWER = Turn(id=1, role="user", text="q"), Turn(id=2, parent=1, role="assistant", text="a", finish="stop")


@pytest.mark.parametrize(
    "turns",
    [
        [ANSWER],
        [QUESTION, QUESTION],
        [ANSWER, QUESTION],
        [QUESTION, Turn(id=2, parent=1, role="user", text="q")],
        [Turn(id=1, role="assistant", text="a", finish="stop")],
        [QUESTION, Turn(id=2, parent=1, role="assistant", text="a")],
        [Turn(id=1, role="user", text="q", finish="stop")],
        [Turn(id=2, parent=2, role="user", text="q")],
    ],
)
def test_turns_that_make_no_tree_are_refused(turns: list[Turn]) -> None:
    session = ChatSession(SamplingParams())
    with pytest.raises(InvalidRequest) as caught:
        session.handle(Open(conversation="a", turns=turns))
    assert caught.value.param == "turns"
    with pytest.raises(UnknownTurn):
        session.handle(Open(conversation="a", turns=[QUESTION], leaf=2))


def test_a_socket_has_bounds() -> None:
    session = ChatSession(SamplingParams())
    for number in range(MAX_CONVERSATIONS):
        session.handle(Open(conversation=str(number)))
    with pytest.raises(ChatTooLarge):
        session.handle(Open(conversation="one more"))
    big = "x" * (MAX_CHARS // 2 + 1)
    session.handle(protocol.Configure(conversation="0", system=big))
    for message in (protocol.Configure(conversation="1", system=big), protocol.Send(conversation="1", text=big)):
        with pytest.raises(ChatTooLarge):
            session.handle(message)
    session.handle(protocol.Configure(conversation="0", system="short"))
    [_, started, order] = session.handle(protocol.Send(conversation="1", text=big))
    assert isinstance(order, StartAnswer) and isinstance(started, protocol.Started)


def test_a_ref_comes_back_on_the_first_reply() -> None:
    session = ChatSession(SamplingParams())
    session.handle(Open(conversation="a"))
    replies = session.handle(protocol.Send(conversation="a", text="hi", ref="one"))
    assert [getattr(reply, "ref", None) for reply in replies] == ["one", msgspec.UNSET, None]
    session.handle(protocol.Cancel(conversation="a", ref="two"))
    assert session.finish("a", 2, reason="cancel", usage=USAGE, timings=TIMINGS).ref == "two"


def examples(text: str) -> list[tuple[str, dict]]:
    """(what stands before it, the object) of every JSON object of a documentation."""
    found, start = [], 0
    while (begin := text.find('{"type"', start)) >= 0:
        value, length = json.JSONDecoder().raw_decode(text[begin:])
        found.append((text[start:begin].split("\n")[-1].strip(), value))
        start = begin + length
    return found


def as_message(example: dict, kind: Any) -> Any:
    """The message that an example is; it stands there as the server would write it."""
    message = msgspec.convert(example, kind)
    written = json.loads(JSON_FRAMES.encode(message))
    assert {**written, **example} == written  # what a client may leave out need not be in the example
    if isinstance(message, protocol.ServerMessage):
        assert example == written
    return message


def test_every_message_is_documented_with_an_example() -> None:
    for kind in (*get_args(protocol.FromClient), *get_args(protocol.FromServer)):
        [(_, example)] = examples(kind.__doc__)
        assert type(as_message(example, protocol.FromClient | protocol.FromServer)) is kind


def test_the_documented_bounds_are_those_that_hold(repository: Path) -> None:
    words = " ".join((protocol.__doc__ or "").split())
    assert f"a conversation {protocol.MAX_TURNS:,} turns, a socket {MAX_CONVERSATIONS} conversations with {MAX_CHARS >> 20} Mi characters" in words
    assert f"from {MAX_WAITING_BYTES >> 10} KiB of replies on" in words
    readme, settings = (repository / "README.md").read_text(), ServerSettings()
    for name in ServerSettings.__struct_fields__:
        default = getattr(settings, name)
        assert not name.startswith("chat_") or re.search(rf"^\| `{name}` \| .* \| {default:.0f} \|$", readme, re.MULTILINE), name
    assert all(f"\n| {code} | " in readme for code in (1001, 1009, 1011, IDLE))


def test_the_documented_life_is_what_a_session_answers() -> None:
    """Up to the engine's own numbers: the text pieces and the timings are the documentation's."""
    session, replies = ChatSession(SamplingParams()), []
    [(_, hello), *life] = examples(protocol.__doc__ or "")
    as_message(hello, protocol.Hello)
    for who, example in life:
        if who == "client":
            assert not replies
            replies = [each for each in session.handle(as_message(example, protocol.FromClient)) if not isinstance(each, StartAnswer)]
            continue
        message = as_message(example, protocol.FromServer)
        if isinstance(message, protocol.Delta):
            replies = [session.extend("a", message.turn, message.text)]
        elif isinstance(message, protocol.Finished):
            replies = [session.finish("a", message.turn, reason=message.reason, usage=message.usage, timings=message.timings)]
        assert replies.pop(0) == message
