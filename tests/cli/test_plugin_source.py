"""`actorllm plugin new --from ORGANIZATION/MODEL`, against a hub of our own: headers travel, weights do not."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from actorllm.cli.main import main
from actorllm.cli.plugin_source import read_model
from actorllm.errors import ActorLLMError, CheckpointError, SettingsError

CONFIG = {"architectures": ["OddForCausalLM"], "model_type": "odd", "hidden_size": 8}


class Hub:
    """Files by their path below the hub's address, and how many bytes of each were sent."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.sent: dict[str, int] = {}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that answers as the hub does, at the address where the hub's library looks."""
    served = Hub({})

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(has_body=False)

        def do_GET(self) -> None:
            self.answer(has_body=True)

        def answer(self, *, has_body: bool) -> None:
            found = served.files.get(self.path)
            known = any(path.startswith("/".join(self.path.split("/")[:3]) + "/") for path in served.files)
            data, status = (b"", 404) if found is None else (found, 200)
            if matched := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", "")):
                data, status = data[int(matched[1]) : int(matched[2]) + 1], 206 if found is not None else 404
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hash(data):x}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            if found is None:
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.end_headers()
            if has_body:
                self.wfile.write(data)
                served.sent[self.path] = served.sent.get(self.path, 0) + len(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is logged."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def weights(tmp_path: Path, **tensors: torch.Tensor) -> bytes:
    save_file(tensors, tmp_path / "made.safetensors")
    return (tmp_path / "made.safetensors").read_bytes()


def test_a_single_file(hub: Hub, tmp_path: Path) -> None:
    data = weights(tmp_path, wte=torch.zeros(1000, 1000), ln=torch.zeros(8))
    hub.files = {
        "/org/odd/resolve/main/config.json": json.dumps(CONFIG).encode(),
        "/org/odd/resolve/main/model.safetensors": data,
    }
    config, shapes = read_model("org/odd")
    assert config == CONFIG
    assert {name: tuple(shape) for name, shape in shapes.items()} == {"wte": (1000, 1000), "ln": (8,)}
    assert hub.sent["/org/odd/resolve/main/model.safetensors"] < len(data) / 10


def test_shards(hub: Hub, tmp_path: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a.0.w": "1.safetensors", "a.1.w": "2.safetensors"}}
    hub.files = {
        "/org/odd/resolve/main/config.json": json.dumps(CONFIG).encode(),
        "/org/odd/resolve/main/model.safetensors.index.json": json.dumps(index).encode(),
        "/org/odd/resolve/main/1.safetensors": weights(tmp_path, **{"a.0.w": torch.zeros(2, 3)}),
        "/org/odd/resolve/main/2.safetensors": weights(tmp_path, **{"a.1.w": torch.zeros(2, 3)}),
    }
    _, shapes = read_model("org/odd")
    assert {name: tuple(shape) for name, shape in shapes.items()} == {"a.0.w": (2, 3), "a.1.w": (2, 3)}


def test_a_package_is_drafted(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"/org/odd/resolve/main/config.json": json.dumps(CONFIG).encode()}
    monkeypatch.chdir(tmp_path)
    assert main(["plugin", "new", "actorllm-odd", "--from", "org/odd"]) == 0
    assert "class OddForCausalLM(CausalLM)" in (tmp_path / "actorllm-odd/actorllm_odd/model.py").read_text()


@pytest.mark.parametrize(
    ("name", "files", "error", "words"),
    [
        ("org/none", {}, SettingsError, "--from org/none: there is no such folder, and no such model on http://.*HF_TOKEN"),
        ("no such/thing/at all", {}, SettingsError, "there is no such folder, and the hub has no such names"),
        (
            "org/odd",
            {"README.md": b""},
            SettingsError,
            "org/odd: there is no such folder, and http://.* did not give it: .*config.json",
        ),
        ("org/odd", {"config.json": b"{"}, CheckpointError, "config.json in .* is not JSON"),
        ("org/odd", {"config.json": b"{}", "model.safetensors": b"\xff" * 64}, CheckpointError, "a header that cannot be read"),
        ("org/odd", {"config.json": b"{}", "model.safetensors": b"\4" + b"\0" * 7 + b"[[[["}, CheckpointError, "cannot be read"),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(
    hub: Hub, capsys, name: str, files: dict[str, bytes], error: type[ActorLLMError], words: str
) -> None:
    hub.files = {f"/org/odd/resolve/main/{path}": data for path, data in files.items()}
    with pytest.raises(error, match=words):
        read_model(name)
    assert main(["plugin", "new", "actorllm-odd", "--from", name]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"actorllm: error: .*{words}.*\n", said)


def test_no_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match=r"http://127\.0\.0\.1:\d+ did not give it"):
        read_model("org/odd")
