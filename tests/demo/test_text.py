"""The text that the demo model learns from: whole sentences, true sums, and none of the questions that it is judged by."""

import operator
import re
from random import Random

import pytest

from examples.train_demo import arithmetic, smalltalk, stories
from examples.train_demo.conversation import conversation
from tests.demo.judge import read_held_out

OPERATIONS = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": operator.truediv}


def plain(text: str) -> str:
    """Words and signs, whatever the casing and the punctuation."""
    return " ".join(re.findall(r"[a-z0-9*+/=-]+", text.lower().replace("'", "")))


@pytest.fixture(scope="module")
def conversations() -> list[list[dict[str, str]]]:
    rng = Random(1)
    return [conversation(rng) for _ in range(6000)]


def test_a_seed_decides_everything() -> None:
    assert [conversation(Random(3)) for _ in range(2)] == [conversation(Random(3))] * 2
    assert conversation(Random(3)) != conversation(Random(4))


def test_roles_alternate_and_templates_are_filled(conversations) -> None:
    for messages in conversations:
        roles = [message["role"] for message in messages if message["role"] != "system"]
        assert roles and roles == ["user", "assistant"] * (len(roles) // 2)
        assert not [message for message in messages if not message["content"] or re.search(r"[\[\]{}|]", message["content"])]


def test_held_out_questions_are_not_generated(conversations) -> None:
    held_out = {plain(ask.ask) for asks in read_held_out().conversations for ask in asks}
    asked = {plain(message["content"]) for messages in conversations for message in messages if message["role"] == "user"}
    assert not held_out & asked


def test_every_equation_is_true() -> None:
    rng, num_equations = Random(2), 0
    for _ in range(3000):
        for _, answer in arithmetic.episode(rng):
            for a, sign, b, result in re.findall(r"(\d+) ([-+x/]) (\d+) = (-?\d+(?:\.5)?)", answer):
                assert OPERATIONS[sign](int(a), int(b)) == float(result), answer
                num_equations += 1
    assert num_equations > 3000


def test_what_goes_on_starts_from_the_last_result() -> None:
    rng = Random(3)
    for result in range(arithmetic.LIMIT + 1):
        answer = arithmetic.next_sum(result, rng).answer
        assert answer in arithmetic.TEXT.beyond or re.match(rf"({result} [-+/x] |2 x {result} = )", answer)


def test_stories_keep_what_was_wished_for() -> None:
    rng = Random(4)
    for _ in range(500):
        request, story = stories.first_request(rng)
        text = story.tell(rng)
        named = [name for name in stories.TEXT.she + stories.TEXT.he if re.search(rf"\b{name}\b", request)]
        assert story.kind in text and all(name in text for name in named)


def test_a_name_that_was_told_is_known(conversations) -> None:
    told = 0
    for messages in conversations:
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        known = [found[1] for answer in answers if (found := re.search(r"(?:Your name is|You are|your name is) ([A-Z]\w+)\.", answer))]
        told += len(known)
        assert all(any(name in answer for answer in answers[:1]) and name in smalltalk.NAMES for name in known)
    assert told > 100
