"""`actorllm plugin new --from ORG/NAME`, against a hub of our own: headers travel, weights do not."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save

from actorllm.cli.main import main
from actorllm.cli.plugin_source import read_model
from actorllm.errors import ActorLLMError, CheckpointError, HubModelNotFound, HubUnreachable, SettingsError
from tests.models.hub_server import HubServer, Repository

CONFIG = {"architectures": ["OddForCausalLM"], "model_type": "odd", "hidden_size": 8}
CONFIG_FILE = {"config.json": json.dumps(CONFIG).encode()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub at the address where the library looks, and an empty cache."""
    with HubServer() as server:
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_a_single_file(hub: HubServer) -> None:
    hub.models["org/odd"] = Repository.of({**CONFIG_FILE, "model.safetensors": save({"wte": torch.zeros(1000, 1000), "ln": torch.zeros(8)})})
    assert read_model("org/odd") == (CONFIG, {"wte": (1000, 1000), "ln": (8,)})
    fetched = [(path, part) for method, path, part in hub.requests if method == "GET" and not path.startswith("/api/")]
    assert ("model.safetensors", "bytes=0-100000") in fetched and len(fetched) == 2


def test_shards(hub: HubServer) -> None:
    index = {"metadata": {}, "weight_map": {"a.0.w": "1.safetensors", "a.1.w": "2.safetensors"}}
    shards = {f"{place + 1}.safetensors": save({f"a.{place}.w": torch.zeros(2, 3)}) for place in range(2)}
    hub.models["org/odd"] = Repository.of({**CONFIG_FILE, **shards, "model.safetensors.index.json": json.dumps(index).encode()})
    assert read_model("org/odd")[1] == {"a.0.w": (2, 3), "a.1.w": (2, 3)}


def test_a_package_is_drafted(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["org/odd"] = Repository.of(CONFIG_FILE)
    monkeypatch.chdir(tmp_path)
    assert main(["plugin", "new", "actorllm-odd", "--from", "org/odd"]) == 0
    assert "class OddForCausalLM(CausalLM)" in (tmp_path / "actorllm-odd/actorllm_odd/model.py").read_text()


@pytest.mark.parametrize(
    ("name", "files", "error", "words"),
    [
        ("org/none", {}, HubModelNotFound, "there is no folder org/none, and no such model on http://.*HF_TOKEN"),
        ("some/folder/deep", {}, SettingsError, "--from some/folder/deep is neither a folder nor a hub id"),
        ("org/odd", {"README.md": b""}, CheckpointError, "cannot read config.json in"),
        ("org/odd", {"config.json": b"{"}, CheckpointError, "config.json in .* is not JSON"),
        ("org/odd", {"config.json": b"{}", "model.safetensors": b"\xff" * 64}, CheckpointError, "a header that cannot be read"),
        ("org/odd", {"config.json": b"{}", "model.safetensors": b"\4" + b"\0" * 7 + b"[[[["}, CheckpointError, "cannot be read"),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(
    hub: HubServer, capsys, name: str, files: dict[str, bytes], error: type[ActorLLMError], words: str
) -> None:
    if files:
        hub.models["org/odd"] = Repository.of(files)
    with pytest.raises(error, match=words):
        read_model(name)
    assert main(["plugin", "new", "actorllm-odd", "--from", name]) == 2
    assert re.fullmatch(rf"actorllm: error: .*{words}.*\n", capsys.readouterr().err)


def test_no_connection(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE is set"):
        read_model("org/odd")
