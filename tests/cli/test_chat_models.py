"""The parts of a chat without a process: a server's stream of events, turns, and the bar of loading."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorllm.cli.chat_models import api_base, server_sent_events
from actorllm.cli.conversation import Conversation
from actorllm.house import LoadingBar


@pytest.mark.parametrize(
    ("url", "base"),
    [("localhost:8000", "http://localhost:8000/v1"), ("https://a.b/", "https://a.b/v1"), ("http://h/v1", "http://h/v1"),
     ("http://h/api/v1/", "http://h/api/v1")],
)  # fmt: skip
def test_where_the_api_is(url: str, base: str) -> None:
    assert api_base(url) == base


@given(st.data())
async def test_events_do_not_depend_on_how_bytes_are_cut(data: st.DataObject) -> None:
    stream = ': hello\r\n\r\ndata: {"a": "ü漢"}\n\nevent: x\ndata:two\ndata: lines\n\nid: 1\n\ndata: [DONE]\r\n\r\ndata: not ended'.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))

    async def chunks() -> AsyncIterator[bytes]:
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            yield stream[start:end]

    assert [event async for event in server_sent_events(chunks())] == ['{"a": "ü漢"}', "two\nlines", "[DONE]"]


def test_turns_alternate_whatever_is_stopped_or_fails() -> None:
    conversation = Conversation()
    assert not conversation.retry()
    conversation.ask("a")
    conversation.ask("b")
    assert conversation.messages == [{"role": "user", "content": "b"}]
    assert conversation.retry()
    conversation.answer("B")
    assert conversation.retry() and conversation.messages == [{"role": "user", "content": "b"}]
    conversation.system = "s"
    conversation.answer("B")
    conversation.ask("c")
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant", "user"]
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "s"}]


def test_a_bar_shows_how_far_the_weights_are(capsys: pytest.CaptureFixture[str]) -> None:
    bar = LoadingBar()
    bar(0, 0)
    bar(2**29, 2**30)
    bar(2**29, 2**30)
    bar(2**30, 2**30)
    half, whole = "#" * 20 + " " * 20, "#" * 40
    assert capsys.readouterr().err == f"\rloading weights  50% |{half}| of 1,024 MiB\rloading weights 100% |{whole}| of 1,024 MiB\n"
