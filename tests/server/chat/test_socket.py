"""Chat over real sockets: conversations, refusals, limits, and what one client can do to another (nothing)."""

import asyncio
from typing import Any

import aiohttp
import pytest

from actorllm.errors import DeviceLost, QueueFull
from actorllm.server.app import create_app, start_site
from actorllm.server.chat.outbox import MAX_WAITING_BYTES, Outbox
from actorllm.settings import ServerSettings
from tests.server.chat.chat_client import ChatClient, chatting
from tests.server.conftest import Served
from tests.server.fake_engine import FakeEngine
from tests.server.fake_server import Fake, fake_serving, until

NAME = {"conversation": "a"}


# --- conversations ---


@pytest.mark.parametrize("is_binary", [False, True])
async def test_a_conversation_with_branches(echo: Served, *, is_binary: bool) -> None:
    async with chatting(echo.client, echo.address, is_binary=is_binary) as chat:
        assert (chat.hello["type"], chat.hello["model"], chat.hello["protocol"]) == ("hello", "echo", 1)
        await chat.ask("open", **NAME, sampling={"max_tokens": 4, "temperature": 0})
        await chat.send("send", **NAME, text="hello")
        text, finished = await chat.answer()
        assert text == " The quick brown fox"
        assert (finished["reason"], finished["usage"]["completion_tokens"]) == ("length", 4)
        await chat.send("regenerate", **NAME, turn=2)
        assert (await chat.answer())[1]["turn"] == 3
        await chat.send("edit", **NAME, turn=1, text="good morning")
        [new, started, *_, finished] = await chat.until("finished")
        assert (new["turn"]["id"], new["turn"].get("parent"), started["turn"], started["parent"]) == (4, None, 5, 4)
        await chat.send("send", **NAME, text="and then?")
        await chat.until("finished")
        assert await chat.ask("select", **NAME, turn=1) | {"ref": 0} == {"type": "selected", **NAME, "leaf": 3, "ref": 0}
        shown = await chat.ask("pick", **NAME)
        assert [(turn["id"], turn.get("parent")) for turn in shown["turns"]] == [
            (1, None), (2, 1), (3, 1), (4, None), (5, 4), (6, 5), (7, 6)]  # fmt: skip
        await chat.ask("open", conversation="b")
        listed = await chat.ask("list")
        assert [(each["conversation"], each["title"], each["num_turns"]) for each in listed["conversations"]] == [("a", "hello", 7), ("b", "", 0)]


async def test_the_text_is_that_of_chat_completions(stories: Served) -> None:
    system, question = "Stories only.", "Tell me of Tom."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = {"messages": messages, "max_tokens": 30, "temperature": 0}
    _, whole = await stories.post("/v1/chat/completions", body)
    async with chatting(stories.client, stories.address) as chat:
        await chat.ask("open", **NAME, system=system, sampling={"max_tokens": 30, "temperature": 0})
        await chat.send("send", **NAME, text=question)
        text, finished = await chat.answer()
        assert text == whole["choices"][0]["message"]["content"]
        assert finished["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
        await chat.send("send", **NAME, text="More.")
        _, second = await chat.answer()
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "More."}]
        _, whole = await stories.post("/v1/chat/completions", {**body, "messages": messages})
        assert second["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


async def test_usage_and_timings_of_an_answer(echo: Served) -> None:
    async with chatting(echo.client, echo.address) as chat:
        await chat.ask("open", **NAME, sampling={"max_tokens": 20})
        await chat.send("send", **NAME, text="hello")
        _, finished = await chat.answer()
        timings = finished["timings"]
        assert 0 <= timings["queue_seconds"] <= timings["ttft_seconds"] <= timings["total_seconds"]
        decoding = timings["total_seconds"] - timings["ttft_seconds"]
        assert timings["tokens_per_second"] == pytest.approx(19 / decoding)


async def test_conversations_of_one_socket_answer_side_by_side(fake: Fake) -> None:
    async with chatting(fake.client, fake.address) as chat:
        for number, name in enumerate("ab"):
            await chat.ask("open", conversation=name)
            assert (await chat.ask("send", conversation=name, text="hi"))["type"] == "turn"
            await until(lambda wanted=number + 1: len(fake.engine.streams) == wanted)
        assert (await chat.ask("send", conversation="a", text="again"))["error"]["code"] == "AnswerRunning"
        fake.engine.push("B", stream=1, finish="stop")
        assert (await chat.answer())[1]["conversation"] == "b"
        fake.engine.push("A", stream=0, finish="stop")
        assert (await chat.answer())[1]["conversation"] == "a"


async def test_sampling_goes_to_the_engine(fake: Fake) -> None:
    async with chatting(fake.client, fake.address) as chat:
        assert (chat.hello["defaults"]["temperature"], chat.hello["defaults"]["top_k"]) == (0.7, 5)
        await chat.ask("open", **NAME, sampling={"temperature": 0.2})
        refused = await chat.ask("configure", **NAME, sampling={"temperature": -1})
        assert (refused["error"]["code"], refused["error"]["param"]) == ("InvalidRequest", "temperature")
        await chat.ask("configure", **NAME, sampling={"top_p": 0.5, "stop": ["x"]})
        await chat.send("send", **NAME, text="hi")
        await until(lambda: fake.engine.streams)
        params = fake.engine.submitted[0][1]
        assert (params.temperature, params.top_k, params.top_p, params.stop) == (0.7, 5, 0.5, ("x",))


# --- ends of answers ---


@pytest.mark.parametrize("moment", ["queued", "decode"])
async def test_cancel(fake: Fake, moment: str) -> None:
    async with chatting(fake.client, fake.address) as chat:
        await chat.ask("open", **NAME)
        if moment == "queued":
            fake.engine.admits.clear()
        await chat.send("send", **NAME, text="hi")
        await chat.until("started")
        if moment == "decode":
            await until(lambda: fake.engine.streams)
            fake.engine.push("so far")
            await chat.until("delta")
        await until(lambda: fake.engine.submitted)
        finished = await chat.ask("cancel", **NAME)
        assert (finished["type"], finished["reason"], finished["error"]) == ("finished", "cancel", None)
        timings = finished["timings"]
        assert timings["queue_seconds"] == (timings["total_seconds"] if moment == "queued" else 0.0)
        assert len(fake.engine.aborted) == 1
        assert (await chat.ask("cancel", **NAME))["error"]["code"] == "NoAnswerRunning"
        turns = (await chat.ask("pick", **NAME))["turns"]
        assert (turns[1]["text"], turns[1]["finish"]) == ("so far" if moment == "decode" else "", "cancel")
        fake.engine.admits.set()
        await chat.ask("regenerate", **NAME, turn=2)


async def test_an_answer_that_fails_ends_with_its_error(fake: Fake) -> None:
    async with chatting(fake.client, fake.address) as chat:
        await chat.ask("open", **NAME)
        fake.engine.refusal = QueueFull("too many requests wait")
        await chat.send("send", **NAME, text="hi")
        _, finished = await chat.answer()
        assert (finished["reason"], finished["error"]["code"], finished["error"]["status"]) == ("error", "QueueFull", 429)
        fake.engine.refusal = None
        await chat.send("regenerate", **NAME, turn=1)
        await until(lambda: fake.engine.streams)
        fake.engine.push("half")
        fake.engine.fail(DeviceLost("gone, see /var/lib/secret/place"))
        text, finished = await chat.answer()
        assert (text, finished["error"]["code"]) == ("half", "DeviceLost")
        assert "secret" not in finished["error"]["message"]
        fake.engine.refusal = ZeroDivisionError()
        await chat.send("regenerate", **NAME, turn=1)
        assert (await chat.answer())[1]["error"]["code"] == "InternalError"


async def test_a_client_that_leaves_aborts_its_answers(fake: Fake) -> None:
    async with chatting(fake.client, fake.address) as chat:
        for name in "abc":
            await chat.ask("open", conversation=name)
            await chat.send("send", conversation=name, text="hi")
        await until(lambda: len(fake.engine.streams) == 3)
    await until(lambda: len(fake.engine.aborted) == 3)


# --- frames ---


@pytest.mark.parametrize("frame", ["", "{", "[]", "null", '{"type": "nothing"}', '{"type": "send"}', '{"type":"list","extra":1}', "[" * 9000, b"\xc1", b"", b"\xff" * 50])
async def test_a_malformed_frame_is_answered_and_costs_nothing(echo: Served, frame: str | bytes) -> None:
    async with chatting(echo.client, echo.address) as chat:
        await chat.ask("open", **NAME)
        await (chat.socket.send_str(frame) if isinstance(frame, str) else chat.socket.send_bytes(frame))
        refused = await chat.receive()
        assert (refused["type"], refused["error"]["code"], refused["error"]["status"]) == ("error", "MalformedFrame", 400)
        assert (await chat.ask("pick", **NAME))["type"] == "conversation"


@pytest.mark.parametrize("is_binary", [False, True])
async def test_a_malformed_message_is_refused_to_whom_it_may_concern(fake: Fake, *, is_binary: bool) -> None:
    async with chatting(fake.client, fake.address, is_binary=is_binary) as chat:
        refused = await chat.ask("send", **NAME, text=7)
        assert (refused["error"]["code"], refused["conversation"]) == ("MalformedFrame", "a")
        assert (await chat.ask("nothing", **NAME))["conversation"] == "a"
        assert (await chat.ask("configure", **NAME, sampling={"seed": 2**70} if not is_binary else {"seed": "x"}))["type"] == "error"
        assert (await chat.ask("pick", conversation="a" * 65))["conversation"] is None
        await chat.send("pick", **NAME, ref=5)
        refused = await chat.receive()
        assert "ref" not in refused and refused["conversation"] == "a"


async def test_a_lone_surrogate_is_refused_with_its_ref(fake: Fake) -> None:
    async with chatting(fake.client, fake.address) as chat:
        refused = await chat.ask("send", **NAME, text="\ud83d")
        assert (refused["error"]["code"], refused["conversation"]) == ("MalformedFrame", "a")


async def test_a_frame_beyond_the_limit_closes_its_socket_alone() -> None:
    async with fake_serving(chat_max_frame=1000) as fake:
        async with chatting(fake.client, fake.address) as chat, chatting(fake.client, fake.address) as other:
            assert chat.hello["max_frame"] == 1000
            await chat.send("open", **NAME, system="x" * 2000)
            assert await chat.closed() == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
            assert (await other.ask("open", **NAME))["type"] == "conversation"


# --- time ---


async def test_a_socket_is_closed_when_nothing_happens_but_not_while_it_answers() -> None:
    async with fake_serving(chat_idle_timeout=1.0) as fake, chatting(fake.client, fake.address) as chat:
        await chat.ask("open", **NAME)
        await chat.send("send", **NAME, text="hi")
        await until(lambda: fake.engine.streams)
        await asyncio.sleep(1.5)
        fake.engine.push("late", finish="stop")
        assert (await chat.answer())[0] == "late"
        assert await chat.closed() == 4408


async def test_a_client_that_answers_no_ping_is_dropped() -> None:
    async with fake_serving(chat_ping_interval=1.0) as fake:
        async with chatting(fake.client, fake.address, autoping=False) as mute, chatting(fake.client, fake.address) as other:
            reading = asyncio.create_task(other.receive())  # aiohttp's client answers pings while it reads
            frame = await mute.socket.receive(10)
            assert frame.type is aiohttp.WSMsgType.PING
            await mute.closed()
            await other.send("open", **NAME)
            assert (await reading)["type"] == "conversation"


async def test_a_server_that_stops_says_so() -> None:
    async with aiohttp.ClientSession() as client:
        engine: Any = FakeEngine()
        runner, address = await start_site(create_app(engine, ServerSettings(port=0)), ServerSettings(port=0))
        async with chatting(client, address) as chat:
            closing = asyncio.create_task(chat.closed())
            await runner.cleanup()
            assert await closing == aiohttp.WSCloseCode.GOING_AWAY


async def test_an_answer_that_has_ended_is_told_to_its_end_before_the_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    async with aiohttp.ClientSession() as client:
        engine: Any = FakeEngine()
        runner, address = await start_site(create_app(engine, ServerSettings(port=0)), ServerSettings(port=0))
        tell = engine._tell_finished
        monkeypatch.setattr(engine, "_tell_finished", lambda *record: asyncio.get_running_loop().call_later(0.2, tell, *record))
        async with chatting(client, address) as chat, chatting(client, address) as idle:
            await chat.ask("open", **NAME)
            await chat.send("send", **NAME, text="hi")
            await until(lambda: engine.streams)
            engine.push("whole", finish="stop")
            leaving, stopping = asyncio.create_task(idle.closed()), asyncio.create_task(runner.cleanup())
            text, finished = await chat.answer()
            assert (text, finished["reason"]) == ("whole", "stop")
            assert await chat.closed() == await leaving == aiohttp.WSCloseCode.GOING_AWAY
            await stopping


# --- a slow reader ---


async def test_a_slow_reader_gets_all_text_in_few_frames(fake: Fake) -> None:
    async with chatting(fake.client, fake.address) as chat:
        await chat.ask("open", **NAME)
        await chat.send("send", **NAME, text="hi")
        await until(lambda: fake.engine.streams)
        chat.socket._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        pieces = [f"{number:06}" + "x" * 500 for number in range(20_000)]
        for number, piece in enumerate(pieces):
            fake.engine.push(piece)
            if number % 20 == 0:
                await asyncio.sleep(0)  # the server may send
        fake.engine.push("end", finish="stop")
        await asyncio.sleep(0.1)
        chat.socket._response.connection.transport.resume_reading()  # type: ignore[union-attr]
        messages = await chat.until("finished")
        deltas = [message["text"] for message in messages if message["type"] == "delta"]
        assert "".join(deltas) == "".join(pieces) + "end"
        assert max(map(len, deltas)) > 100_000  # what waited came as one


async def test_a_client_that_asks_without_reading_is_held_back(fake: Fake) -> None:
    async with chatting(fake.client, fake.address) as chat, chatting(fake.client, fake.address) as other:
        await chat.ask("open", **NAME, system="x" * 500_000)
        transport: Any = chat.socket._response.connection.transport  # type: ignore[union-attr]
        transport.pause_reading()
        for _ in range(200):
            await chat.send("pick", **NAME)
        assert (await other.ask("open", **NAME))["type"] == "conversation"
        transport.resume_reading()
        for _ in range(200):
            assert len((await chat.receive())["system"]) == 500_000


async def test_a_client_that_reads_nothing_can_cancel_but_not_ask(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = asyncio.Event()
    write_to = Outbox.write_to

    async def write_late(outbox: Outbox, socket: Any) -> None:
        await sent.wait()
        await write_to(outbox, socket)

    monkeypatch.setattr(Outbox, "write_to", write_late)
    async with fake.client.ws_connect(fake.address + "/v1/chat/ws", max_msg_size=0) as socket:
        chat = ChatClient(socket)
        await chat.send("open", **NAME)
        await chat.send("send", **NAME, text="hi")
        await until(lambda: fake.engine.streams)
        await chat.send("configure", **NAME, system="x" * (MAX_WAITING_BYTES + 1))
        await chat.send("cancel", **NAME)
        await until(lambda: fake.engine.aborted)
        await chat.send("send", **NAME, text="more")
        await chat.send("cancel", **NAME)
        await asyncio.sleep(0.2)
        assert len(fake.engine.submitted) == 1
        sent.set()
        kinds = [message["type"] for message in await chat.until("finished")]
        assert kinds == ["hello", "conversation", "turn", "started", "configured", "finished"]
        _, last = await chat.answer()
        assert last["reason"] == "cancel" and last["turn"] == 4


# --- for whoever runs the server ---


async def test_answers_are_logged_and_sockets_counted(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    async def counted() -> str:
        async with fake.client.get(fake.address + "/metrics") as response:
            return next(line for line in (await response.text()).splitlines() if line.startswith("actorllm_chat_sockets "))

    caplog.set_level("INFO", "actorllm.requests")
    async with chatting(fake.client, fake.address) as chat:
        assert await counted() == "actorllm_chat_sockets 1.0"
        await chat.ask("open", **NAME)
        await chat.send("send", **NAME, text="a secret")
        await until(lambda: fake.engine.streams)
        fake.engine.push("x", finish="stop")
        await chat.answer()
    [line] = [record.getMessage() for record in caplog.records if "answer of a chat" in record.getMessage()]
    assert "reason=stop" in line and "prompt_tokens=3 output_tokens=1" in line and "secret" not in line
    async with asyncio.timeout(10):
        while await counted() != "actorllm_chat_sockets 0.0":
            pass
    await until(lambda: "/v1/chat/ws status=" in caplog.text)
    assert "/v1/chat/ws status=101 " in caplog.text
    async with fake.client.get(fake.address + "/metrics") as response:
        text = await response.text()
    assert 'status="101"' in text and 'status="499"' not in text
