"""`actorllm chat` as a process without a terminal, and what it cannot do."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import actorllm_echo
from tests.cli.chat_server import ChatServer


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as running:
        yield running


async def piped(*arguments: str, message: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `actorllm chat` without a terminal."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "actorllm", "chat", *arguments, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **environment}
    )
    async with asyncio.timeout(60):
        said, complained = await process.communicate(message.encode())
    assert process.returncode is not None
    return process.returncode, said.decode(), complained.decode()


async def test_without_a_terminal_the_input_is_a_message_and_the_output_its_answer(server: ChatServer) -> None:
    url = f"http://127.0.0.1:{server.port}"
    assert await piped("--url", url, "--system", "s", message="two\nlines\n") == (0, "TWO\nLINES\n", "")
    assert server.conversation == [("system", "s"), ("user", "two\nlines")]
    assert await piped(str(actorllm_echo.directory()), "--max-tokens", "3", "--temperature", "0", message="hello") == (0, " The quick brown\n", "")


@pytest.mark.parametrize(
    ("arguments", "message", "said"),
    [
        (["--url", "{url}"], " \n", "there is no message"),
        (["--url", "127.0.0.1:9"], "hi", "http://127.0.0.1:9/v1/models cannot be reached (Connection refused)"),
        (["--url", "http://"], "hi", "is not a URL"),
        (["--url", "ftp://127.0.0.1:9"], "hi", "is not a URL"),
        (["--url", "{url}/nothing"], "hi", "/nothing/v1/models answered 404"),
        (["--url", "{url}", "--threads", "2", "--dtype", "float32"], "hi", "--dtype, --threads: these are for a model in this process"),
        (["--url", "{url}", "--api-key-env", "NO_SUCH_KEY"], "hi", "--api-key-env NO_SUCH_KEY: there is no such"),
        (["--api-key-env", "KEY"], "hi", "--api-key-env is for a server"),
        (["no-such-folder"], "hi", "no-such-folder"),
        (["no-such-folder", "--temperature", "-1"], "hi", "temperature must be between"),
    ],
)
async def test_what_cannot_be_had_is_one_sentence(server: ChatServer, arguments: list[str], message: str, said: str) -> None:
    arguments = [argument.format(url=f"http://127.0.0.1:{server.port}") for argument in arguments]
    code, output, complained = await piped(*arguments, message=message)
    assert (code, output) == (2, "")
    last = complained.strip().splitlines()[-1]
    assert last.startswith("actorllm: error: ") and said in last and "Traceback" not in complained


async def test_a_model_without_a_chat_template_is_told_at_once(tmp_path: Path) -> None:
    folder = shutil.copytree(actorllm_echo.directory(), tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    code, output, complained = await piped(str(folder), message="hi")
    assert (code, output) == (2, "") and complained.startswith("actorllm: error: this model has no chat template")


async def test_a_server_without_a_model(server: ChatServer) -> None:
    server.models.clear()
    code, _, complained = await piped("--url", f"127.0.0.1:{server.port}", message="hi")
    assert code == 2 and "lists no model" in complained


async def test_a_chat_with_a_server_imports_no_torch(server: ChatServer) -> None:
    code = "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))\nfrom actorllm.cli.main import main\nmain()"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "chat", "--url", f"127.0.0.1:{server.port}", stdin=pipe, stdout=pipe
    )
    assert await process.communicate(b"hi") == (b"HI\nFalse\n", None)
