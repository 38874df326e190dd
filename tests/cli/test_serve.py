"""`actorllm serve` as a process: what it says, how it stops, how it ends."""

import asyncio
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

import actorllm_echo

ECHO = str(actorllm_echo.directory())
LONG = {"prompt": "the", "max_tokens": 2000, "ignore_eos": True, "stream": True}


class Process:
    """A running `actorllm` and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait until it has said something that matches."""
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            while not (found := re.search(pattern, self.said)):
                line = await self.process.stderr.readline()
                assert line, f"it ended without saying {pattern!r}: {self.said}"
                self.said += line.decode()
        return found

    async def ends(self) -> int:
        """Wait for the exit code."""
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            self.said += (await self.process.stderr.read()).decode()
            return await self.process.wait()


@asynccontextmanager
async def actorllm(*arguments: str, script: str = "") -> AsyncIterator[Process]:
    """`actorllm ARGUMENTS`; `script` runs in the process before."""
    code = f"import sys\n{script}\nfrom actorllm.cli.main import main\nsys.exit(main())"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, *arguments, stderr=asyncio.subprocess.PIPE)
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def address_of(process: Process) -> str:
    return (await process.says(r"at (http://\S+)"))[1]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_lets_running_requests_finish_and_takes_no_new_ones(client: aiohttp.ClientSession, stop: signal.Signals) -> None:
    async with actorllm("serve", ECHO, "--port", "0", "--served-model-name", "mine", "yours") as process:
        address = await address_of(process)
        async with client.get(address + "/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == ["mine", "yours"]
        async with client.post(address + "/v1/completions", json=LONG) as stream:
            await stream.content.readany()
            process.process.send_signal(stop)
            await process.says("stopping")
            async with client.post(address + "/v1/completions", json={"prompt": "a"}) as refused:
                assert refused.status == 503
                assert (await refused.json())["error"]["code"] == "EngineStopped"
            async with client.get(address + "/health") as health:
                assert health.status == 503
            events = (await stream.text()).split("\n\n")
        assert events[-2] == "data: [DONE]"
        assert json.loads(events[-3].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert await process.ends() == 0
        assert "Traceback" not in process.said
        assert re.search(r"POST /v1/completions status=200 .*output_tokens=2000 .*finish=length", process.said)


async def test_a_second_signal_stops_at_once(client: aiohttp.ClientSession) -> None:
    async with actorllm("serve", ECHO, "--port", "0", script="import os; os.environ['ACTORLLM_SERVER_DRAIN_TIMEOUT'] = '600'") as process:
        address = await address_of(process)
        streams = [await client.post(address + "/v1/completions", json={**LONG, "max_tokens": 4000}) for _ in range(16)]
        process.process.terminate()
        await process.says("stopping")
        process.process.terminate()
        assert await process.ends() == 0
        assert "Traceback" not in process.said
        for text in await asyncio.gather(*(stream.text() for stream in streams)):
            *_, last, done, _ = text.split("\n\n")
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "EngineStopped" and done == "data: [DONE]"


async def test_a_drain_that_takes_too_long_tells_those_it_cuts_off(client: aiohttp.ClientSession) -> None:
    async with actorllm("serve", ECHO, "--port", "0", script="import os; os.environ['ACTORLLM_SERVER_DRAIN_TIMEOUT'] = '0.2'") as process:
        address = await address_of(process)
        whole = asyncio.create_task(client.post(address + "/v1/completions", json={**LONG, "stream": False, "max_tokens": 4000}))
        async with client.post(address + "/v1/completions", json={**LONG, "max_tokens": 4000}) as stream:
            await stream.content.readany()
            process.process.terminate()
            assert "EngineStopped" in await stream.text()
        assert (await whole).status == 503
        assert await process.ends() == 0


async def test_a_model_after_the_names_is_no_name(client: aiohttp.ClientSession) -> None:
    async with actorllm("serve", "--port", "0", "--served-model-name", "mine", ECHO) as process:
        assert await process.ends() == 2
        assert "put the model before the flags" in process.said


async def test_more_threads_than_can_be_started_are_refused() -> None:
    async with actorllm("serve", ECHO, "--port", "0", "--threads", "99999") as process:
        assert await process.ends() == 2
        assert "--threads is 99999, but at most 256 are started" in process.said


async def test_an_engine_that_fails_ends_its_streams_and_the_process(client: aiohttp.ClientSession) -> None:
    script = """
from actorllm.errors import DeviceLost
from actorllm.execution.devices import Devices
run, steps = Devices.run, []
def lose(self, step, deliver):
    steps.append(step.number)
    if len(steps) == 50:
        return deliver(None, DeviceLost("the device is gone"))
    run(self, step, deliver)
Devices.run = lose
"""
    async with actorllm("serve", ECHO, "--port", "0", script=script) as process:
        address = await address_of(process)
        async with asyncio.timeout(30), client.post(address + "/v1/completions", json=LONG) as stream:
            events = (await stream.text()).split("\n\n")
        assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "DeviceLost"
        assert events[-2] == "data: [DONE]"
        assert await process.ends() == 1
        assert "actorllm: error: the device is gone" in process.said


async def test_a_rank_that_never_comes_to_a_collective_ends_its_streams_and_the_process(client: aiohttp.ClientSession) -> None:
    script = """
import os, time
from actorllm.cli import serve
from actorllm.layers.collectives import ThreadRanks
os.environ["ACTORLLM_EXECUTION_STEP_TIMEOUT"] = "1"
serve.STOP_TIMEOUT = 0.5
all_reduce, calls = ThreadRanks.all_reduce, []
def stay_away(self, value):
    calls.append(self)
    while len(calls) > 300 and self._rank == 1:  # a thread that nobody can join
        time.sleep(60)
    return all_reduce(self, value)
ThreadRanks.all_reduce = stay_away
"""
    async with actorllm("serve", "--port", "0", "--tensor-parallel", "2", script=script) as process:
        address = await address_of(process)
        async with asyncio.timeout(30), client.post(address + "/v1/completions", json={**LONG, "max_tokens": 500}) as stream:
            events = (await stream.text()).split("\n\n")
        assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "DeviceHung"
        assert await process.ends() == 1


async def test_without_a_model_the_demo_model_is_served(client: aiohttp.ClientSession) -> None:
    async with actorllm("serve", "--port", "0") as process:
        address = await address_of(process)
        assert "no model was named: serving the demo model" in process.said
        async with client.get(address + "/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == ["actorllm-demo"]
        question = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 40}
        async with client.post(address + "/v1/chat/completions", json=question) as response:
            assert response.status == 200
            assert (await response.json())["choices"][0]["message"]["content"]


async def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        async with actorllm("serve", "acme/no-such-model", "--port", port) as process:  # told before the model is looked for
            assert await process.ends() == 2
    assert f"actorllm: error: cannot listen on 127.0.0.1 port {port}" in process.said
    assert "Traceback" not in process.said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-folder"], "no-such-folder"),
        (["--revision", "v1"], "--revision v1"),
        (["--config", "no-such-file.toml"], "no-such-file.toml"),
        (["/"], "/ has no config.json"),
        (["--threads", "0"], "setting execution.threads is wrong"),
        (["--context", "0"], "context"),
        (["--max-waiting", "-1"], "max_waiting"),
        (["--port", "70000"], "port"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(capsys, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    from actorllm.cli.main import main

    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)
    assert main(["serve", *arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("actorllm: error: ") and said in last


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["serve", "--nothing"], ["serve", "--kv-memory", "much"], ["serve", "--dtype", "int3"]])
def test_wrong_usage(capsys, arguments: list[str]) -> None:
    from actorllm.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    is_of_command = arguments[:1] == ["serve"]
    assert ("usage: actorllm serve" if is_of_command else "usage: actorllm [-h]") in capsys.readouterr().err


def test_a_settings_file_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actorllm.cli import serve
    from actorllm.cli.main import main
    from actorllm.settings import Settings

    seen: list[Settings] = []

    async def remember(settings: Settings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(serve, "serve", remember)
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: seen.append(seconds))
    file = tmp_path / "settings.toml"
    file.write_text("[scheduling]\ndepth = 2\nmax_waiting = 3\n")
    flags = ["--max-waiting", "5", "--kv-memory", "1.5GiB", "--served-model-name", "a", "b", "--allow-origin", "null", "--allow-origin", "https://c"]
    assert main(["serve", "acme/model", "--config", str(file), *flags]) == 0
    interval, settings = seen
    assert interval == serve.SWITCH_INTERVAL
    assert (settings.scheduling.depth, settings.scheduling.max_waiting) == (2, 5)
    assert settings.execution.kv_memory == 3 * 2**29
    assert settings.model.path == "acme/model" and settings.model.served_names == ("a", "b")
    assert settings.server.allowed_origins == ("null", "https://c")


@pytest.mark.parametrize("arguments", [
    "plugin list", "serve --help", "bench --help", "chat --help", "serve --threads 0", "serve --port 0 --revision main /", "bench 0"
])
async def test_what_computes_nothing_imports_no_torch(arguments: str) -> None:
    script = "import atexit\natexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    async with actorllm(*arguments.split(), script=script) as process:
        assert await process.ends() == (2 if "0" in arguments else 0)
        assert process.said.strip().endswith("False")
