"""Frames that nobody should send, for `FUZZ_SECONDS` (2 by default): no exception escapes, nothing is left behind, and a client
beside them talks as if it were alone."""

import asyncio
import gc
import json
import logging
import os
import random
from contextlib import suppress

import aiohttp
import msgspec
import pytest

from actorllm.server.chat.socket import ChatSocket
from actorllm.settings import ServerSettings
from tests.server.chat.chat_client import chatting
from tests.server.conftest import Served
from tests.server.fake_server import until

SECONDS = float(os.environ.get("FUZZ_SECONDS", "2"))
NUM_FUZZERS = 6
MIN_FRAMES = 50
KINDS = ("open", "send", "edit", "regenerate", "cancel", "select", "configure", "list", "pick", "close", "hello", "delta", "")
VALUES = (None, -1, 0, 1, 2, 3, 2**63, 2**70, 1.5, True, "", "a", "b", "\ud83d\ude00", "x" * 100_000, [], {}, [{}], {"temperature": 0.5}, {"max_tokens": 3})


def valid(rng: random.Random) -> dict:
    """A message of the protocol, though perhaps not for this moment."""
    name, turn, text = rng.choice("abc"), rng.randint(1, 6), rng.choice(("hi", "tell me more", "\u00e9" * 30))
    sampling = {"max_tokens": rng.randint(0, 40)}
    turns = [{"id": 1, "role": "user", "text": "q"}, {"id": 2, "parent": 1, "role": "assistant", "text": "a", "finish": "stop"}]
    return rng.choice(
        [
            {"type": "open", "conversation": name, "turns": rng.choice(([], turns)), "sampling": sampling},
            {"type": "send", "conversation": name, "text": text},
            {"type": "edit", "conversation": name, "turn": turn, "text": text},
            {"type": "regenerate", "conversation": name, "turn": turn},
            {"type": "cancel", "conversation": name},
            {"type": "select", "conversation": name, "turn": turn},
            {"type": "configure", "conversation": name, "sampling": sampling},
            {"type": "list"},
            {"type": "pick", "conversation": name},
            {"type": "close", "conversation": name},
        ]
    )


def mutated(rng: random.Random) -> dict:
    """A message with one field added, changed or lost."""
    message = valid(rng)
    field = rng.choice([*message, "turn", "sampling", "made up"])
    if rng.random() < 0.2:
        message.pop(field, None)
    else:
        message[field] = rng.choice(KINDS if field == "type" else VALUES)
    return message


async def send_one(socket: aiohttp.ClientWebSocketResponse, rng: random.Random) -> None:
    """One frame: random bytes, a valid or nearly valid message, half of one, a giant, or none at all."""
    kind = rng.choices(("bytes", "valid", "mutated", "half", "giant", "swapped", "leave"), (10, 60, 30, 10, 1, 5, 2))[0]
    message = valid(rng) if kind != "mutated" else mutated(rng)
    as_json, as_msgpack = json.dumps(message), None
    with suppress(OverflowError, UnicodeEncodeError):
        as_msgpack = msgspec.msgpack.encode(message)
    if kind == "bytes":
        await socket.send_bytes(rng.randbytes(rng.randint(0, 300)))
    elif kind == "half":
        await socket.send_str(as_json[: rng.randint(0, len(as_json) - 1)])
    elif kind == "giant":
        await socket.send_str('{"type": "send", "text": "' + "x" * 2_000_000)
    elif kind == "swapped":
        await socket.send_str((as_msgpack or b"").decode("latin-1"))
    elif kind == "leave":
        await rng.choice((socket.close, lambda: asyncio.sleep(0, socket._response.close())))()
    elif as_msgpack is not None and rng.random() < 0.5:
        await socket.send_bytes(as_msgpack)
    else:
        await socket.send_str(as_json)


async def read_all(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


async def fuzz(echo: Served, seed: int, deadline: float) -> int:
    """Send frames over one socket after the other; returns how many. A slow machine gets the time for a few."""
    rng, loop, num_frames = random.Random(seed), asyncio.get_running_loop(), 0

    def is_on() -> bool:
        return loop.time() < deadline or num_frames < MIN_FRAMES

    while is_on():
        async with echo.client.ws_connect(echo.address + "/v1/chat/ws", max_msg_size=0) as socket:
            reading = asyncio.create_task(read_all(socket))
            with suppress(ConnectionError):
                while is_on() and not socket.closed:
                    await send_one(socket, rng)
                    num_frames += 1
                    if rng.random() < 0.3:
                        await asyncio.sleep(rng.random() * 0.02)
            reading.cancel()
            await asyncio.wait({reading})
    return num_frames


async def talk(echo: Served, deadline: float) -> int:
    """A client that behaves: every answer must be whole. Returns how many it got."""
    num_answers = 0
    async with chatting(echo.client, echo.address) as chat:
        await chat.ask("open", conversation="a", sampling={"max_tokens": 10, "temperature": 0})
        while asyncio.get_running_loop().time() < deadline or not num_answers:
            await chat.send("send" if num_answers == 0 else "regenerate", conversation="a", **({"text": "hi"} if num_answers == 0 else {"turn": 1}))
            text, finished = await chat.answer()
            assert text == " The quick brown fox jumps over the lazy dog.", text
            assert finished["error"] is None
            num_answers += 1
    return num_answers


def num_sockets() -> int:
    """Chat sockets that are in memory."""
    gc.collect()
    return sum(type(each) is ChatSocket for each in gc.get_objects())


@pytest.mark.timeout(SECONDS + 120)
async def test_fuzzed_frames(echo: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    escaped: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: escaped.append(context))
    num_tasks, sockets_before = len(asyncio.all_tasks()), num_sockets()  # a failed test's traceback may hold some
    deadline = asyncio.get_running_loop().time() + SECONDS
    *num_frames, num_answers = await asyncio.gather(
        *(fuzz(echo, seed, deadline) for seed in range(NUM_FUZZERS)), talk(echo, deadline)
    )
    print(f"{sum(num_frames)} fuzzed frames in {SECONDS} s beside {num_answers} whole answers")
    assert min(num_frames) >= MIN_FRAMES and num_answers > 0
    await until(lambda: echo.engine.statistics().num_open == 0 and echo.engine.statistics().slots_in_use == (0,))
    assert not escaped
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await until(lambda: num_sockets() <= sockets_before)
    await until(lambda: len(asyncio.all_tasks()) <= num_tasks + 1)  # the client's pool keeps a connection


def test_the_limit_of_a_frame_is_below_the_giant() -> None:
    assert ServerSettings().chat_max_frame < 2_000_000
