"""What waits for a slow reader: in order, merged, and each piece of text told once."""

import asyncio
import json
from typing import Any

from actorllm.server.chat.frames import JSON_FRAMES
from actorllm.server.chat.messages import Closed, Delta
from actorllm.server.chat.outbox import MAX_WAITING_BYTES, Outbox
from tests.server.fake_server import until


class Reader:
    """The far end of a socket, which takes what it is given."""

    def __init__(self) -> None:
        self.messages: list[dict] = []

    async def send_str(self, frame: str) -> None:
        self.messages.append(json.loads(frame))


def delta(text: str, *, turn: int = 2) -> Delta:
    return Delta(conversation="a", turn=turn, text=text)


async def written(outbox: Outbox, num_messages: int) -> list[dict]:
    """The messages that come out of it."""
    reader: Any = Reader()
    writing = asyncio.create_task(outbox.write_to(reader))
    await until(lambda: len(reader.messages) >= num_messages)
    writing.cancel()
    return reader.messages


async def test_deltas_of_a_turn_are_merged() -> None:
    outbox = Outbox(JSON_FRAMES)
    for message in (delta("a"), delta("x", turn=4), delta("b"), delta("c")):
        outbox.put(message)
    assert [message["text"] for message in await written(outbox, 2)] == ["abc", "x"]
    outbox.put(delta("d"))
    assert [message["text"] for message in await written(outbox, 1)] == ["d"]


async def test_no_delta_overtakes_a_reply() -> None:
    """The reply may be the whole conversation with the text so far."""
    outbox = Outbox(JSON_FRAMES)
    for message in (delta("a"), Closed(conversation="b"), delta("b"), delta("c")):
        outbox.put(message)
    assert [message.get("text", message["type"]) for message in await written(outbox, 3)] == ["a", "closed", "bc"]


async def test_whoever_replies_waits_for_room() -> None:
    outbox = Outbox(JSON_FRAMES)
    await outbox.wait_for_room()
    outbox.put(Closed(conversation="x" * MAX_WAITING_BYTES))
    waiting = asyncio.create_task(outbox.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await written(outbox, 1)
    await waiting
