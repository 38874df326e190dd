"""Every command in README.md works as it stands there: it is run where it needs no network and takes seconds; of the others, what
they name is there."""

import argparse
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import actorllm
from actorllm.cli.main import COMMANDS, main
from tests.cli.readme import Readme, flags_of, forms, program

ROOT = Path(__file__).resolve().parents[2]
README = Readme.read(ROOT / "README.md")
DEMO = str(Path(actorllm.__file__).parent / "demo")
QUICK = ["--concurrency", "1", "--prompt-tokens", "4", "--output-tokens", "4", "--prefill", "8", "--rounds", "1", "--threads", "1"]
"""Loads that replace those of `actorllm bench`, which takes the last value of a flag."""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """That of README's server of the demo model."""
    (serve,) = (command for command in README.of("actorllm") if command.split()[1:] == ["serve"])
    command = [sys.executable, "-m", "actorllm", *serve.split()[1:], "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path_factory.mktemp("served"), stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = ""
        while not (found := re.search(r" at http://127.0.0.1:(\d+)\n", said)):
            line = server.stderr.readline()
            assert line, said
            said += line
        yield found[1]
        server.terminate()
        server.communicate(timeout=60)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in; this process keeps its switch interval."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)
    return tmp_path


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The flags of a command and its subcommands."""
    found = {flag: action for action in parser._actions for flag in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                found |= options(sub)
    return found


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command)
    import_module(f"actorllm.cli.{command}").add_arguments(parser)
    return parser


def sources(module: str) -> str:
    """The text of a module, or of all modules in a package and below it."""
    path = ROOT / module.replace(".", "/")
    return "".join(each.read_text() for each in (path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]))


def shell(line: str, *, folder: Path, port: str = "") -> str:
    """What a line prints that is typed into a shell; what it reads from a terminal is `Hello!`, and there is something to review."""
    line = line.replace("--url ...", "--url http://localhost:8000").replace("localhost:8000", f"localhost:{port}")
    commands = f'actorllm() {{ {shlex.quote(sys.executable)} -m actorllm "$@"; }}; git() {{ echo "+ print(2)"; }}; set -o pipefail'
    done = subprocess.run(["bash", "-c", f"{commands}\n{line}"], cwd=folder, input="Hello!\n", capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_is_read() -> None:
    assert {program(command) for command in README.commands} == {"actorllm", "curl", "git", "hf", "make", "pip", "python", "python3"}
    assert {command.split()[1] for command in README.of("actorllm")} == set(COMMANDS)
    assert len(README.flags) > 20 and len(README.routes) > 8


@pytest.mark.parametrize("command", README.of("curl"))
def test_curl_is_answered(port: str, tmp_path: Path, command: str) -> None:
    assert '"content":' in shell(command, folder=tmp_path, port=port)


@pytest.mark.parametrize("command", README.of("git") + [each for each in README.of("actorllm") if each.split()[1] == "chat"])
def test_a_chat_is_answered(port: str, tmp_path: Path, command: str) -> None:
    for form in forms(command.replace("[MODEL]", shlex.quote(DEMO)).replace("NAME", "actorllm-demo")):
        assert shell(form, folder=tmp_path, port=port).strip()


@pytest.mark.parametrize("route", README.routes)
def test_routes_are_there(port: str, route: str) -> None:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}{route}", timeout=60).close()
    except urllib.error.HTTPError as error:  # of the wrong method, or of a socket that was not asked for
        assert error.code in (400, 405)


@pytest.mark.parametrize("command", [each for each in README.of("actorllm") if each.split()[1] == "serve"])
def test_serve_takes_it(command: str) -> None:
    for form in forms(command):
        parser_of("serve").parse_args(shlex.split(form)[2:])


@pytest.mark.parametrize("command", [each for each in README.of("actorllm") if each.split()[1] in ("bench", "plugin", "quantize")])
def test_commands_that_end(place: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    for name, real in (("MODEL", DEMO), ("DIR_OR_HUB_ID", DEMO), ("--json FILE", "--json out.json"), ("--plot FILE", "--plot out.svg")):
        command = command.replace(name, real)
    for number, form in enumerate(forms(command)):
        words = shlex.split(form.replace(" OUT ", f" out{number} "))[1:]
        assert main([*words, *(QUICK if words[0] == "bench" else ())]) == 0
    assert capsys.readouterr().out
    assert "FILE" not in command and (" OUT " not in command or (place / "out0" / "config.json").exists())


@pytest.mark.parametrize("command", README.of("make"))
def test_make_has_the_target(command: str) -> None:
    done = subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(word.removeprefix("MODEL=") in done.stdout for word in command.split() if word.startswith("MODEL="))


@pytest.mark.parametrize("command", README.of("pip"))
def test_pip_finds_what_it_installs(command: str) -> None:
    expanded = subprocess.run(["bash", "-c", "printf '%s\\n' " + command.partition(" install ")[2]], cwd=ROOT, capture_output=True, text=True, check=True)
    parser = argparse.ArgumentParser()
    for flag in ("-r", "-e"):
        parser.add_argument(flag, action="append", default=[])
    for flag in ("--no-deps", "--no-build-isolation"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--index-url")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args(expanded.stdout.split())
    assert given.r or given.e or given.names
    assert not [path for path in given.r if not (ROOT / path).is_file()]
    assert not [path for path in given.e if not (ROOT / path / "pyproject.toml").is_file()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in map(Requirement, given.names):
        if name.name == project["name"]:
            assert name.extras <= set(project["optional-dependencies"])
        else:
            assert str(name) in (ROOT / "requirements.txt").read_text().splitlines()


@pytest.mark.parametrize("command", README.of("python", "python3"))
def test_python_finds_what_it_runs(command: str) -> None:
    words = shlex.split(command)[1:]
    module = words[1] if words[0] == "-m" else words[0].removesuffix(".py").replace("/", ".")
    assert find_spec(module) is not None, module
    if (ROOT / module.split(".")[0]).is_dir():
        text = sources(module)
        choices = [each for word in words if "|" in word for each in word.split("|")]
        assert not [word for word in (*flags_of(command), *choices) if f'"{word}"' not in text]


def test_hf_is_installed() -> None:
    assert README.of("hf") and entry_points(group="console_scripts", name="hf")


@pytest.mark.parametrize("flag", README.flags)
def test_flags_are_there(flag: str) -> None:
    name, _, value = flag.partition(" ")
    found = {command: taken[name] for command in COMMANDS if name in (taken := options(parser_of(command)))}
    if not found:
        assert f'"{name}"' in sources("tests.benchmarks")
    elif "|" in value:
        assert [action.choices for action in found.values()].count(tuple(value.split("|")))
