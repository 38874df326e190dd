"""Questions in other grammar: the rules that turn them, and that a question of any kind is turned alike."""

from random import Random

import pytest

from examples.train_demo import syntax


@pytest.mark.parametrize(
    ("question", "clause"),
    [
        ("what is the default port", "what the default port is"),
        ("what's the capital of France", "what the capital of France is"),
        ("which port does it use", "which port it uses"),
        ("how do i start it", "how i start it"),
        ("why do you not know", "why you do not know"),
        ("what did she find", "what she found"),
        ("how is the context length set", "how the context length is set"),
        ("can the queue be longer", "whether the queue can be longer"),
        ("do you like cats", "whether you like cats"),
        ("how much is 3 + 4", "how much 3 + 4 is"),
        ("how to start it", "how to start it"),
        ("what is the flag used for", None),
        ("and the port", None),
        ("what did she frobnicate", None),
    ],
)
def test_a_question_becomes_a_clause(question: str, clause: str | None) -> None:
    assert syntax.clause(question) == clause


@pytest.mark.parametrize(
    ("act", "acting"),
    [
        ("run the tests", "running the tests"),
        ("use it", "using it"),
        ("quit", "quitting"),
        ("see more", "seeing more"),
        ("tie a tie", "tying a tie"),
    ],
)
def test_an_act_becomes_a_gerund(act: str, acting: str) -> None:
    assert syntax.gerund(act) == acting


def test_carriers_keep_what_is_asked_and_leave_statements_alone() -> None:
    rng = Random(1)
    for _ in range(300):
        asked = syntax.carried("what is the port?", rng)
        assert ("what the port is" in asked) != ("what is the port" in asked)
        assert "tell me a joke" in syntax.carried("can you tell me a joke?", rng)
        assert syntax.carried("my name is Ada", rng) == "my name is Ada"
