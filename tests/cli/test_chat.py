"""`actorllm chat` as a process in a terminal, against servers and with a model of its own."""

import asyncio
import json
import signal
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from aiohttp import web

import actorllm_echo
from tests.cli.chat_server import ChatServer, finish, hold, send, send_json
from tests.cli.terminal_process import TerminalProcess, in_terminal
from tests.server.conftest import serving

READY = r">>>$"
ECHO = str(actorllm_echo.directory())
Chat = Callable[..., AbstractAsyncContextManager[TerminalProcess]]


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as running:
        yield running


@pytest.fixture
def chat(tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """`actorllm chat --url` with that server, in a folder and with a home of its own."""
    monkeypatch.chdir(tmp_path)

    def start(*arguments: str, **environment: str) -> AbstractAsyncContextManager[TerminalProcess]:
        command = ("-m", "actorllm", "chat", "--url", f"localhost:{server.port}", *arguments)
        return in_terminal(*command, environment={"HOME": str(tmp_path), **environment})

    return start


async def ask(terminal: TerminalProcess, keys: str, pattern: str) -> None:
    """Type keys and Enter, and wait for the answer and the next prompt."""
    await terminal.shows(READY)
    before = len(terminal.text)
    terminal.type(keys + "\r")
    await terminal.shows(rf"{pattern}.*\n{READY}", after=before)


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_true():  # noqa: ASYNC110 (what is awaited lives in a server, without an event of its own)
            await asyncio.sleep(0.02)


async def test_answers_stream_and_the_conversation_grows(chat: Chat, server: ChatServer) -> None:
    may_go_on = asyncio.Event()

    async def reply(server: ChatServer, stream: web.StreamResponse) -> None:
        await send(stream, "one ", "two")
        await may_go_on.wait()
        await send(stream, " three")
        await finish(stream, num_tokens=3)

    server.replies.append(reply)
    async with chat("--system", "be brief", "--temperature", "0", "--max-tokens", "9") as terminal:
        await terminal.shows(rf"first: /help lists the commands.*{READY}")
        terminal.type("count\r")
        await terminal.shows(r"one two$")
        may_go_on.set()
        await terminal.shows(rf"one two three\n3 tokens, [\d.]+ tokens/s, first text after [\d.]+ s\n{READY}")
        await ask(terminal, "again", "AGAIN")
        terminal.type("\x04")
        assert await terminal.ends() == 0
    assert server.conversation == [
        ("system", "be brief"), ("user", "count"), ("assistant", "one two three"), ("user", "again"),
    ]  # fmt: skip
    assert {key: server.bodies[0][key] for key in ("model", "stream", "temperature", "max_tokens")} == {
        "model": "first", "stream": True, "temperature": 0.0, "max_tokens": 9,
    }  # fmt: skip


async def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Chat, server: ChatServer) -> None:
    server.replies += [hold("and so", " on"), hold()]
    async with chat() as terminal:
        await terminal.shows(READY)
        terminal.type("talk\r")
        await terminal.shows("and so on$")
        terminal.type("not shown")
        terminal.type("\x03")
        await terminal.shows(rf"and so on\nstopped; .*{READY}")
        assert "not shown" not in terminal.text
        await asyncio.wait_for(server.has_left.wait(), 30)
        terminal.type("go on\r")
        await until(lambda: len(server.bodies) == 2)
        terminal.type("\x03")
        await terminal.shows(rf"go on\nstopped\n{READY}")
        await ask(terminal, "really", "REALLY")
        assert server.conversation == [("user", "talk"), ("assistant", "and so on"), ("user", "really")]
        terminal.type("half")
        await terminal.shows("half$")
        terminal.type("\x03")
        await terminal.shows(READY)
        terminal.type("\x03")
        await terminal.shows(rf"Ctrl-D or /exit leaves\n{READY}")
        await ask(terminal, "still here", "STILL HERE")


async def test_what_is_typed_while_an_answer_streams_are_the_next_messages(chat: Chat, server: ChatServer) -> None:
    may_end = asyncio.Event()

    async def reply(server: ChatServer, stream: web.StreamResponse) -> None:
        await send(stream, "one")
        await may_end.wait()
        await finish(stream, num_tokens=1)

    server.replies.append(reply)
    async with chat() as terminal:
        await terminal.shows(READY)
        terminal.type("first\r")
        await terminal.shows("one$")
        assert terminal.marks_pastes
        terminal.type("secx\x7fond\r\x1b[200~two\rlines\x1b[201~\rthi")
        may_end.set()
        await terminal.shows("SECOND.*TWO\nLINES.*>>> thi$")
        assert [text for role, text in server.conversation if role == "user"] == ["first", "second", "two\nlines"]
        server.replies.append(hold("and"))
        terminal.type("rd\r")
        await terminal.shows("and$")
        terminal.type("dropped\r\x03")
        await terminal.shows(rf"and\nstopped; .*{READY}")
        await ask(terminal, "last", "LAST")
        assert server.conversation[-3:] == [("user", "third"), ("assistant", "and"), ("user", "last")]


async def test_messages_of_several_lines(chat: Chat, server: ChatServer) -> None:
    async with chat() as terminal:
        await ask(terminal, "a\\\rb\x1b\rc\nd", r" a\n\.\.\. b\n\.\.\. c\n\.\.\. d\nA\nB\nC\nD\n")
        assert server.conversation[-1] == ("user", "a\nb\nc\nd")
        await ask(terminal, "\x1b[200~def f():\r\n    pass\r\n\r\nf()\x1b[201~", "DEF")
        assert server.conversation[-1] == ("user", "def f():\n    pass\n\nf()")
        assert server.conversation[-2] == ("assistant", "A\nB\nC\nD")
        await ask(terminal, "ünï 漢字", "ÜNÏ 漢字")
        await ask(terminal, "   ", "")
        assert len(server.bodies) == 3, "an empty message is not sent"


async def test_commands(chat: Chat, server: ChatServer, tmp_path: Path) -> None:
    async with chat() as terminal:
        await ask(terminal, "/regenerate", "there is nothing to answer yet")
        await ask(terminal, "one", "ONE")
        await ask(terminal, "/system be kind", "system message: be kind")
        await ask(terminal, "/sys\t", "system message: be kind")
        await ask(terminal, "two", "TWO")
        before = server.bodies[-1]["messages"]
        await ask(terminal, "/regenerate", "TWO")
        assert server.bodies[-1]["messages"] == before
        assert server.conversation == [("system", "be kind"), ("user", "one"), ("assistant", "ONE"), ("user", "two")]
        await ask(terminal, "/save talk.json", "saved as talk.json")
        saved = json.loads((tmp_path / "talk.json").read_text())
        assert saved == {"model": "first", "messages": [*before, {"role": "assistant", "content": "TWO"}]}
        await ask(terminal, "/save talk.json", "talk.json exists already")
        await ask(terminal, "/save no/such/folder.md", r"cannot write no/such/folder.md \(No such file")
        await ask(terminal, "/save ~/my talk.md", "saved as")
        text = (tmp_path / "my talk.md").read_text()
        assert text.startswith("# A conversation with first, ") and text.endswith("## User\n\ntwo\n\n## Assistant\n\nTWO\n")
        await ask(terminal, "/save", r"saved as chat-\d{8}-\d{6}\.md")
        await ask(terminal, "/reset", "a new conversation")
        await ask(terminal, "/system off", "no system message")
        await ask(terminal, "/sistem x", "there is no command /sistem: did you mean /system")
        await ask(terminal, "/etc/hosts is what?", "/ETC/HOSTS IS WHAT")
        assert server.conversation == [("user", "/etc/hosts is what?")]
        await ask(terminal, " /reset", "/RESET")
        assert len(server.conversation) == 3
        await ask(terminal, "/help", "/regenerate +answer the last message again")
        terminal.type("/exit\r")
        assert await terminal.ends() == 0


async def test_earlier_messages_come_back_by_the_arrow_keys_in_the_next_session_too(chat: Chat, server: ChatServer, tmp_path: Path) -> None:
    async with chat() as terminal:
        await ask(terminal, "line one\nline two", "LINE TWO")
        terminal.type("\x04")
        await terminal.ends()
    async with chat() as terminal:
        await ask(terminal, "\x1b[A", "LINE TWO")
    assert server.conversation == [("user", "line one\nline two")]
    file = tmp_path / ".local" / "state" / "actorllm" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_server_that_is_lost_and_returns(chat: Chat, server: ChatServer) -> None:
    async def break_off(server: ChatServer, stream: web.StreamResponse) -> None:
        await send(stream, "begun")
        assert stream._req is not None and stream._req.transport is not None
        stream._req.transport.abort()

    server.replies.append(break_off)
    async with chat() as terminal:
        await ask(terminal, "hello", r"begun\nthe connection to \S+ broke off: try again\n/regenerate tries again")
        await server.__aexit__()
        await ask(terminal, "/regenerate", r"cannot be reached \(Connection refused\): is the server running\?")
        await server.__aenter__()
        await ask(terminal, "/regenerate", r"HELLO\nfirst text after")
        assert server.conversation == [("user", "hello")]


async def test_errors_are_sentences_and_the_chat_goes_on(chat: Chat, server: ChatServer) -> None:
    async def fail(server: ChatServer, stream: web.StreamResponse) -> None:
        await send(stream, "so")
        await send_json(stream, {"error": {"message": "the device is gone"}})

    async def talk_nonsense(server: ChatServer, stream: web.StreamResponse) -> None:
        await stream.write(b"data: <html>\n\n")

    async def cut_off(server: ChatServer, stream: web.StreamResponse) -> None:
        await send(stream, "long")
        await finish(stream, "length")

    async def say_nothing(server: ChatServer, stream: web.StreamResponse) -> None:
        await finish(stream)

    async with chat() as terminal:
        server.replies += [fail, talk_nonsense, cut_off, say_nothing]
        await ask(terminal, "a", r"so\nthe server failed: the device is gone\n/regenerate")
        await ask(terminal, "b", r"the server's stream cannot be read: <html>")
        await ask(terminal, "c", r"long\nfirst text after .* cut off: --max-tokens or the model's context is reached")
        assert server.conversation == [("user", "a"), ("assistant", "so"), ("user", "c")], "b got no answer"
        await ask(terminal, "d", "an empty answer")
        server.refusal = (400, '{"error": {"message": "the prompt is too long"}}')
        await ask(terminal, "e", "answered 400: the prompt is too long")
        server.refusal = (502, "<b>Bad gateway</b>")
        await ask(terminal, "f", "answered 502: <b>Bad gateway</b>")
        server.refusal = None
        await ask(terminal, "/regenerate", r"\nF\n")


async def test_what_a_model_says_cannot_change_the_terminal(chat: Chat, server: ChatServer) -> None:
    async def attack(server: ChatServer, stream: web.StreamResponse) -> None:
        await send(stream, "red \x1b", "[31mtext\x1b[2J\x07", "\x9b2J back\b\b\bspace\r\ttab \x1b]0;title\x07end")
        await finish(stream)

    server.replies.append(attack)
    server.models = ["mo\x1b[2Jdel"]
    async with chat() as terminal:
        await terminal.shows(r"mo\[2Jdel: /help")
        await ask(terminal, "go", r"red \[31mtext\[2J2J backspace +tab \]0;titleend")


async def test_the_servers_second_model_and_a_key(chat: Chat, server: ChatServer) -> None:
    async with chat("second", "--api-key-env", "MY_KEY", MY_KEY="secret") as terminal:
        await ask(terminal, "hi", "HI")
    assert server.bodies[0]["model"] == "second" and server.keys == ["Bearer secret"]


async def test_a_termination_leaves_the_terminal_as_it_was(chat: Chat, server: ChatServer) -> None:
    async with chat() as terminal:
        assert terminal.shows_keys
        await terminal.shows(READY)
        assert not terminal.shows_keys
        terminal.process.terminate()
        assert await terminal.ends() == 128 + signal.SIGTERM
        assert terminal.shows_keys
    server.replies.append(hold("so"))
    async with chat() as terminal:
        await terminal.shows(READY)
        terminal.type("hi\r")
        await terminal.shows("so$")
        terminal.process.terminate()
        assert await terminal.ends() == 128 + signal.SIGTERM
        assert terminal.shows_keys and "Traceback" not in terminal.text


async def test_with_a_real_server(tmp_path: Path) -> None:
    async with serving() as served:
        messages = [{"role": "user", "content": "hello"}]
        expected = []
        for _ in ("hello", "the lazy"):
            body = {"messages": messages, "max_tokens": 12, "temperature": 0}
            _, answer = await served.post("/v1/chat/completions", body)
            expected.append(answer["choices"][0]["message"]["content"].strip())
            messages = [*messages, answer["choices"][0]["message"], {"role": "user", "content": "the lazy"}]
        url = ("--url", served.address + "/v1/", "--temperature", "0", "--max-tokens", "12")
        async with in_terminal("-m", "actorllm", "chat", *url, environment={"HOME": str(tmp_path)}) as terminal:
            await ask(terminal, "hello", rf"{expected[0]}\n12 tokens, .* cut off")
            await ask(terminal, "the lazy", rf"the lazy\n *{expected[1]}\n12 tokens")
            terminal.type("\x04")
            assert await terminal.ends() == 0
        async with in_terminal("-m", "actorllm", "chat", *url[:2], environment={"HOME": str(tmp_path)}) as terminal:
            await terminal.shows(READY)
            terminal.type("on and on\r")
            await terminal.shows("(quick brown fox.*){5}")
            terminal.type("\x03")
            await terminal.shows(rf"stopped; first text after.*{READY}")
        await until(lambda: served.engine.statistics().num_ended["abort"] == 1)


async def test_with_a_model_of_its_own(tmp_path: Path) -> None:
    async with in_terminal("-m", "actorllm", "chat", ECHO, "--threads", "1", environment={"HOME": str(tmp_path)}) as terminal:
        await terminal.shows(f"loading {ECHO}")
        await terminal.shows(rf"{Path(ECHO).name} \(context 4096 tokens\).*{READY}")
        terminal.type("hello\r")
        await terminal.shows("(quick brown fox.*){5}")
        terminal.type("\x03")
        await terminal.shows(rf"stopped; \d+ tokens, [\d.]+ tokens/s, .*{READY}")
        terminal.type("/reset\r")
        await terminal.shows(rf"a new conversation\n{READY}")
        terminal.type("\x04")
        assert await terminal.ends() == 0
        assert "Traceback" not in terminal.text


async def test_ctrl_c_while_the_model_is_loaded_leaves(tmp_path: Path) -> None:
    slow = "import sys, time, threading, actorllm.house as house\nhouse.model_directory = lambda settings: print('stuck') or time.sleep(600)"
    code = f"{slow}\nfrom actorllm.cli.main import main\nsys.exit(main())"
    async with in_terminal("-c", code, "chat", environment={"HOME": str(tmp_path)}) as terminal:
        await terminal.shows("stuck")
        terminal.type("\x03")
        assert await terminal.ends() == 130
        assert "Traceback" not in terminal.text
