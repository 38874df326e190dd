"""Models by their hub id, downloaded from a small hub on loopback by processes with an empty cache."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import actorllm_echo
from actorllm.errors import SettingsError
from actorllm.house import model_directory, model_name
from actorllm.models.hub import is_hub_id
from actorllm.settings import ModelSettings
from tests.models.hub_server import HubServer, Repository

ID = "acme/tiny-llama"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TEXTS = {name: name.encode() for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt")}
INDEX = {"model.safetensors.index.json": json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()}
NEEDED = TEXTS | INDEX | {name: os.urandom(200_000) for name in SHARDS}
UNWANTED = {
    name: b"not needed"
    for name in (
        "README.md", "pytorch_model.bin", "modeling_tiny.py", "original.pt", "consolidated.safetensors", "model.onnx",
        "fp16/model.safetensors", "original/tokenizer.model", "sub/config.json", ".gitattributes",
    )
}  # fmt: skip
DOWNLOAD = "from actorllm.models.hub import download\nprint(download({id!r}, revision={revision!r}))"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.models[ID] = Repository.of(NEEDED | UNWANTED)
        yield server


@dataclass
class Client:
    """Runs Python in processes that know this hub, and have a cache of their own."""

    hub: HubServer
    home: Path

    def environment(self, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        patience = {"HF_HUB_DOWNLOAD_TIMEOUT": "100", "HF_HUB_ETAG_TIMEOUT": "100"}
        return kept | patience | {"HF_ENDPOINT": self.hub.address, "HF_HOME": str(self.home), "OMP_NUM_THREADS": "1"} | changes

    def python(self, code: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, env=self.environment(**changes), cwd=self.home)

    def download(self, model: str = ID, *, revision: str | None = None, **changes: str) -> Path:
        """The folder; a failure is an assertion with what was said."""
        done = self.python(DOWNLOAD.format(id=model, revision=revision), **changes)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    def refusal(self, model: str = ID, *, revision: str | None = None, before: str = "", **changes: str) -> str:
        """`ErrorClass: message` of a download that fails."""
        code = f"""
from actorllm.errors import ActorLLMError
{before}
try:
    {DOWNLOAD.format(id=model, revision=revision).replace(chr(10), "; ")}
except ActorLLMError as error:
    print(type(error).__name__ + ": " + error.message)
"""
        done = self.python(code, **changes)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(hub, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("acme/tiny", True), ("Acme-1/ti.ny_2", True), ("acme", False), ("./acme/tiny", False), ("./tiny", False), ("../tiny", False),
     ("/acme/tiny", False), ("a/b/c", False), ("acme/", False), ("/tiny", False), ("a b/c", False), ("~/tiny", False), ("acme/..", False)],
)  # fmt: skip
def test_what_looks_like_a_hub_id(text: str, expected: bool) -> None:
    assert is_hub_id(text) is expected


def test_only_what_is_needed_is_fetched_and_only_once(hub: HubServer, client: Client) -> None:
    folder = client.download()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == NEEDED
    assert sorted(hub.files_sent) == sorted(NEEDED)
    hub.requests.clear()
    assert client.download() == folder
    assert hub.files_sent == []


def test_a_single_weight_file(hub: HubServer, client: Client) -> None:
    files = TEXTS | {"model.safetensors": b"weights"}
    hub.models[ID] = Repository.of(files | UNWANTED)
    assert {path.name for path in client.download().iterdir()} == set(files)


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: HubServer, client: Client) -> None:
    commits = {digit * 40: {"config.json": digit.encode(), "model.safetensors": b"w"} for digit in "123"}
    hub.models[ID] = Repository(commits, {"main": "3" * 40, "v1": "1" * 40})
    for revision, digit in {None: "3", "v1": "1", "2" * 40: "2"}.items():
        folder = client.download(revision=revision)
        assert folder.name == digit * 40 and (folder / "config.json").read_text() == digit
    assert client.refusal(revision="v9").startswith(f"HubModelNotFound: {ID} has no revision 'v9': give --revision")


def test_a_dropped_connection_is_resumed_where_it_broke(hub: HubServer, client: Client) -> None:
    chunk = 10 * 2**20  # what the library reads at once: resuming begins after the last whole one
    large = os.urandom(chunk * 5 // 2)
    hub.models[ID] = Repository.of(NEEDED | {SHARDS[1]: large})
    hub.drops.add(SHARDS[1])
    assert (client.download() / SHARDS[1]).read_bytes() == large
    ranges = [asked for method, path, asked in hub.requests if method == "GET" and path == SHARDS[1]]
    assert ranges == [None, f"bytes={chunk}-"]


def test_a_download_that_was_killed_keeps_its_whole_files(hub: HubServer, client: Client) -> None:
    hub.stalls.add(SHARDS[1])
    code = DOWNLOAD.format(id=ID, revision=None)
    with subprocess.Popen([sys.executable, "-c", code], env=client.environment(), stdout=subprocess.DEVNULL) as process:
        blobs = client.home / "hub" / "models--acme--tiny-llama" / "snapshots"
        deadline = time.monotonic() + 60
        while SHARDS[1] not in hub.files_sent or not list(blobs.glob(f"*/{SHARDS[0]}")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.kill()
    hub.stalls.clear()
    hub.requests.clear()
    assert (client.download() / SHARDS[1]).read_bytes() == NEEDED[SHARDS[1]]
    assert hub.files_sent == [SHARDS[1]]


def test_a_terminal_shows_how_far_the_download_is(hub: HubServer, client: Client) -> None:
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    command = [sys.executable, "-c", DOWNLOAD.format(id=ID, revision=None)]
    with subprocess.Popen(command, env=client.environment(), stdout=subprocess.DEVNULL, stderr=end):
        os.close(end)
        shown = read_all(terminal)
    assert re.search(rf"downloading {ID}: .*\| .* / +400kB", shown), "both weight files in one bar"
    assert not shown.rpartition("\r")[2].strip(), "the bar goes when it is done"


def read_all(terminal: int) -> str:
    """What is written to a terminal until nobody has it open."""
    shown = b""
    with suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as screen:
        while data := screen.read(4096):
            shown += data
    return shown.decode()


def test_without_network_the_cache_serves_and_else_the_error_says_what_to_do(hub: HubServer, client: Client) -> None:
    nowhere = "http://127.0.0.1:9"
    for environment, words in (
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set: unset it"),
        ({"HF_ENDPOINT": nowhere}, f"{nowhere} cannot be reached: check the network"),
    ):
        refusal = client.refusal(**environment)
        assert refusal.startswith(f"HubUnreachable: there is no folder {ID}, and as a model of the hub {ID} is not wholly") and words in refusal
    folder = client.download()
    hub.requests.clear()
    assert client.download(HF_HUB_OFFLINE="1") == client.download(HF_ENDPOINT=nowhere) == folder
    assert hub.requests == []
    (folder / SHARDS[0]).unlink()
    assert "not wholly in the cache" in client.refusal(HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_hub_that_does_not_answer_is_asked_once(client: Client, *, is_silent: bool) -> None:
    """A commit needs no resolving: the library would list its files, again and again."""
    commit = "a" * 40
    with socket.create_server(("127.0.0.1", 0)) as hole:  # takes connections and never says a word
        hub = f"http://127.0.0.1:{hole.getsockname()[1] if is_silent else 9}"
        code = DOWNLOAD.format(id=ID, revision=commit)
        done = client.python(code, HF_ENDPOINT=hub, HF_HUB_ETAG_TIMEOUT="2")
    assert f"HubUnreachable: there is no folder {ID}, and as a model of the hub {ID} at revision {commit} is not wholly in the cache" in done.stderr
    assert f"{hub} cannot be reached" in done.stderr and "Retrying" not in done.stderr


def test_what_cannot_be_had_is_a_typed_error(hub: HubServer, client: Client) -> None:
    hub.models["acme/gated"] = Repository.of(NEEDED, is_gated=True)
    hub.models["acme/pickles"] = Repository.of(TEXTS | {"pytorch_model.bin": b"p"})
    missing = client.refusal("acme/nothing")
    assert missing.startswith("HubModelNotFound: there is no folder acme/nothing, and no such model on") and "HF_TOKEN" in missing
    gated = client.refusal("acme/gated")
    assert gated.startswith("HubAccessDenied: acme/gated is gated") and f"{hub.address}/acme/gated" in gated
    assert client.refusal(HF_TOKEN="wrong").startswith(f"HubAccessDenied: {hub.address} refuses {ID} (401): check HF_TOKEN")
    assert client.refusal("acme/pickles").startswith("CheckpointError: acme/pickles has no model.safetensors, only pytorch_model.bin")
    assert not [path for path in hub.files_sent if path.endswith((".bin", ".safetensors"))]


FULL_SOON = "import shutil; shutil.disk_usage = lambda path: type('Usage', (), {'free': 300_000})"
FULL_NOW = """
import errno, huggingface_hub.file_download as library
def fail(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")
library.http_get = fail
"""


@pytest.mark.parametrize(("before", "num_sent"), [(FULL_SOON, len(TEXTS | INDEX)), (FULL_NOW, 0)])
def test_a_full_disk(hub: HubServer, client: Client, before: str, num_sent: int) -> None:
    refusal = client.refusal(before=before)
    assert refusal.startswith("DiskFull: ") and ID in refusal and "HF_HOME" in refusal
    assert len(hub.files_sent) == num_sent, "weights that do not fit are not begun"


def test_a_cache_that_cannot_be_written(hub: HubServer, client: Client) -> None:
    (client.home / "file").touch()
    refusal = client.refusal(HF_HOME=str(client.home / "file"))
    assert refusal.startswith("HubCacheUnusable: the hub's cache cannot be used (Not a directory: ") and "HF_HOME" in refusal


def test_a_download_that_keeps_breaking_off_is_begun_again_and_then_given_up(client: Client) -> None:
    breaks = """
import logging, huggingface_hub.file_download as library
logging.basicConfig(handlers=[logging.StreamHandler(__import__("sys").stdout)], format="warned %(message)s")
def fail(*args, **options):
    raise OSError("connection reset")
library.http_get = fail
"""
    lines = client.refusal(before=breaks).splitlines()
    assert [line[:6] for line in lines] == ["warned", "warned", "Downlo"]
    assert lines[2].startswith(f"DownloadInterrupted: the download of {ID} broke off: OSError: connection reset; start again")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights in several files, with the echo model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from actorllm.testing.reference import randomize

    folder = tmp_path_factory.mktemp("tiny")
    vocab_size = json.loads((actorllm_echo.directory() / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    randomize(model, seed=0)
    model.save_pretrained(folder, max_shard_size="50KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((actorllm_echo.directory() / name).read_bytes())
    return folder


GENERATE = """
import sys
from actorllm import LLM, SamplingParams
for model in sys.argv[1:]:
    with LLM(model) as llm:
        print(llm.generate([list(range(40))], SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)))
"""


def generate(client: Client, *models: str, **changes: str) -> list[str]:
    """The same greedy text of each model, one model after the other."""
    command = [sys.executable, "-c", GENERATE, *models]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=client.environment(**changes), cwd=client.home)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_model_of_the_hub_generates_what_its_folder_does(hub: HubServer, client: Client, tiny_llama: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    assert len(shards) > 1
    hub.models[ID] = Repository.of(files | UNWANTED)
    hub.drops.add(shards[0])
    local, from_hub = generate(client, str(tiny_llama), ID)
    assert from_hub == local and len(local) > 24
    hub.requests.clear()
    assert generate(client, ID, HF_HUB_OFFLINE="1") == [local]
    assert hub.requests == []


def test_a_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(ID).mkdir(parents=True)
    (Path(ID) / "config.json").write_text("{}")
    assert model_directory(ModelSettings(path=ID)) == Path(ID) and model_name(ID) == "tiny-llama"
    with pytest.raises(SettingsError, match="revision"):
        model_directory(ModelSettings(path=ID, revision="v1"))
    with pytest.raises(SettingsError, match="only a model of the hub has revisions, and no model was named: give ORG/NAME"):
        model_directory(ModelSettings(revision="v1"))


def serve(client: Client, *arguments: str, **options: Any) -> subprocess.Popen:
    command = [sys.executable, "-m", "actorllm", "serve", "--port", "0", *arguments]
    return subprocess.Popen(command, env=client.environment(), cwd=client.home, stderr=subprocess.PIPE, text=True, **options)


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def test_a_signal_stops_a_download_at_once(hub: HubServer, client: Client) -> None:
    hub.stalls.add(SHARDS[0])
    with serve(client, ID, "--revision", "main") as process:
        wait_for(process, lambda: SHARDS[0] in hub.files_sent)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopping while the model is loaded" in said and "Traceback" not in said


def test_serve_says_in_one_sentence_why_it_cannot(client: Client) -> None:
    with serve(client, "acme/nothing") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no such model" in said.splitlines()[-1] and "Traceback" not in said
