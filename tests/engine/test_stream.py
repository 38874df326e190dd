"""The far end of a request: order, repetition, merging, failing, counting."""

import asyncio
from collections.abc import Callable

import pytest

from actorllm.errors import EngineFailed
from actorllm.messages import TokenEvent, TokenEvents
from actorllm.stream import RequestStream, Streams


def make_stream(num_choices: int = 1) -> tuple[RequestStream, list[str]]:
    aborted: list[str] = []
    return RequestStream("r", num_choices, on_abort=aborted.append), aborted


async def test_a_slow_reader_gets_events_merged_and_every_one_once() -> None:
    stream, _ = make_stream()
    for index in range(3):
        stream.push(TokenEvent("r", 0, index, index, str(index)))
    stream.push(TokenEvent("r", 0, 1, 1, "1"))  # a restarted detokenizer repeats itself
    stream.push(TokenEvent("r", 0, 3, 3, "3", finish="stop"))
    batches = [events async for events in stream]
    assert [event.text for event in batches[0]] == ["0", "1", "2", "3"]
    assert len(batches) == 1
    assert stream.num_output_tokens == 4


async def test_nothing_follows_the_end_of_a_choice() -> None:
    stream, _ = make_stream()
    stream.push(TokenEvent("r", 0, 0, 5, "a", finish="length"))
    stream.push(TokenEvent("r", 0, 1, 6, "b", finish="stop"))
    stream.fail(EngineFailed("late"))
    events = [event async for batch in stream for event in batch]
    assert [event.finish for event in events] == ["length"]


async def test_a_reader_that_waits_is_woken() -> None:
    stream, _ = make_stream()
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    stream.push(TokenEvent("r", 0, 0, 1, "x"))
    assert [event.text for event in await reader] == ["x"]


async def forwarding(stream: RequestStream, take: Callable[[TokenEvent], bool]) -> asyncio.Task[None]:
    task = asyncio.create_task(stream.forward(take))
    await asyncio.sleep(0)
    return task


async def test_forwarded_events_are_taken_in_the_call_that_pushes_them() -> None:
    stream, _ = make_stream()
    taken: list[str] = []
    task = await forwarding(stream, lambda event: taken.append(event.text) is None)
    stream.push(TokenEvent("r", 0, 0, 1, "a"))
    assert taken == ["a"]
    stream.push(TokenEvent("r", 0, 1, 1, "b", finish="stop"))
    assert taken == ["a", "b"]
    await task
    assert [event async for batch in stream for event in batch] == []


async def test_what_a_forwarding_declines_waits_with_all_that_follows() -> None:
    stream, _ = make_stream()
    task = await forwarding(stream, lambda event: event.text == "a")
    for index, text in enumerate("aba"):
        stream.push(TokenEvent("r", 0, index, 1, text))
    await task
    assert [event.text for event in await anext(stream)] == ["b", "a"]
    stream.push(TokenEvent("r", 0, 3, 1, "c"))
    await stream.forward(lambda event: True)  # something waits: it goes first
    assert [event.text for event in await anext(stream)] == ["c"]


async def test_a_fault_in_forwarding_is_its_callers_and_not_the_pushers() -> None:
    stream, _ = make_stream()

    def take(event: TokenEvent) -> bool:
        raise ValueError(event.text)

    task = await forwarding(stream, take)
    stream.push(TokenEvent("r", 0, 0, 1, "a"))
    stream.push(TokenEvent("r", 0, 1, 1, "b", finish="stop"))
    with pytest.raises(ValueError, match="a"):
        await task
    assert [event.text for event in await anext(stream)] == ["a", "b"]


async def test_leaving_early_aborts_once_and_leaving_late_does_not() -> None:
    stream, aborted = make_stream()
    async with stream:
        pass
    stream.abort()
    assert aborted == ["r"]
    ended, not_aborted = make_stream()
    ended.push(TokenEvent("r", 0, 0, 1, "", finish="stop"))
    async with ended:
        pass
    assert not_aborted == []


async def test_failing_all_ends_every_choice_with_the_error() -> None:
    streams = Streams()
    stream, _ = make_stream(num_choices=2)
    streams.add(stream)
    streams.deliver(TokenEvents((TokenEvent("r", 0, 0, 1, "x", finish="stop"),)))
    assert len(streams) == 1
    streams.fail_all(EngineFailed("broken"))
    events = [event async for batch in stream for event in batch]
    assert [(event.choice, event.finish) for event in events] == [(0, "stop"), (1, "error")]
    assert events[1].failure is not None
    assert isinstance(events[1].failure.error(), EngineFailed)
    assert len(streams) == 0
    await streams.wait_empty()
    assert streams.num_ended["error"] == 1
