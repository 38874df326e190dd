"""Stop strings: streamed in any pieces, the shown text equals a search over the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from actorllm.tokenizer.stop_strings import StopFinder

TEXT = st.text(alphabet="abc", max_size=24)


def shown_at_once(text: str, stops: list[str]) -> tuple[str, bool]:
    """Brute force: cut where the first completed stop string begins."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(pieces=st.lists(TEXT, max_size=8), stop=st.text(alphabet="abc", min_size=1, max_size=4))
def test_one_stop_string_over_any_pieces(pieces: list[str], stop: str) -> None:
    finder = StopFinder([stop])
    shown = "".join(finder.push(piece) for piece in pieces)
    if not finder.is_found:
        shown += finder.flush()
    assert (shown, finder.is_found) == shown_at_once("".join(pieces), [stop])


@given(text=TEXT, stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_several_stop_strings_character_by_character(text: str, stops: list[str]) -> None:
    finder = StopFinder(stops)
    shown = "".join(finder.push(character) for character in text)
    if not finder.is_found:
        shown += finder.flush()
    assert (shown, finder.is_found) == shown_at_once(text, stops)


def test_nothing_that_may_become_a_stop_string_is_shown() -> None:
    finder = StopFinder(["<end>"])
    assert finder.push("hello <e") == "hello "
    assert finder.push("n") == ""
    assert finder.push("t") == "<ent"


def test_without_stop_strings_text_passes() -> None:
    assert StopFinder([]).push("anything") == "anything"
