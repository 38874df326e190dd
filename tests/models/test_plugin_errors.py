"""The five ways in which an installed plugin can be unusable, each with a real package on the path, through the command line."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import actorllm_echo
from actorllm.cli.main import main
from actorllm.errors import PluginAmbiguous, PluginBroken, PluginError, PluginInvalid, PluginMissing, PluginOutdated
from actorllm.models.catalog import Catalog

SOUND = """
from actorllm_echo import EchoForCausalLM

class OddForCausalLM(EchoForCausalLM): ...
"""
UNFINISHED = """
from actorllm.models.contract import CausalLM
from actorllm_echo import EchoConfig

class OddForCausalLM(CausalLM):
    config_class = EchoConfig
    def embed(self, batch): ...
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package with its metadata on the path, as pip would: `odd_one` 1.0 registers OddForCausalLM."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def add(source: str, *, name: str = "odd_one", version: str = "1.0", contract: int = 1, attribute: str = "OddForCausalLM") -> None:
        (site / f"{name}.py").write_text(source)
        metadata = site / f"{name}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[actorllm.models.v{contract}]\nOddForCausalLM = {name}:{attribute}\n")

    yield add
    for path in site.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The echo model, made to ask for the odd plugin."""
    folder = shutil.copytree(actorllm_echo.directory(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["OddForCausalLM"]}))
    return folder


def broken(install: Install) -> None:
    install("import a_package_that_is_not_there")


def ambiguous(install: Install) -> None:
    install(SOUND)
    install(SOUND, name="odd_two", version="2.0")


def outdated(install: Install) -> None:
    install(SOUND, contract=0)


def invalid_kind(install: Install) -> None:
    install("OddForCausalLM = 3")


def invalid_unfinished(install: Install) -> None:
    install(UNFINISHED)


def invalid_attribute(install: Install) -> None:
    install(SOUND, attribute="EvenForCausalLM")


def missing(install: Install) -> None:
    """Installs nothing."""


CULPRIT = r"OddForCausalLM = odd_one:OddForCausalLM of odd-one 1\.0"
CASES = [
    (missing, PluginMissing, r"no installed plugin serves OddForCausalLM\. .*Installed: .*EchoForCausalLM.*Install a plugin"),
    (broken, PluginBroken, CULPRIT + r" raised ModuleNotFoundError: No module named 'a_package_that_is_not_there'\. Reinstall odd-one"),
    (ambiguous, PluginAmbiguous, CULPRIT + r"; OddForCausalLM = odd_two:OddForCausalLM of odd-two 2\.0\. Uninstall all but one"),
    (outdated, PluginOutdated, CULPRIT + r" speaks version 0 .* install a release of odd-one"),
    (invalid_kind, PluginInvalid, CULPRIT + r" is not a subclass of actorllm\.models\.contract\.CausalLM: tell its author"),
    (invalid_unfinished, PluginInvalid, CULPRIT + r" does not define cache_groups, head, layer, norm, .*: tell its author"),
    (invalid_attribute, PluginBroken, r"odd_one:EvenForCausalLM of odd-one 1\.0 raised AttributeError: .*EvenForCausalLM.*Reinstall odd-one"),
]


@pytest.mark.parametrize(("damage", "error", "words"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_each_error_names_the_culprit_and_the_mend(
    install: Install, checkpoint: Path, capsys, damage: Callable[[Install], None], error: type[PluginError], words: str
) -> None:
    damage(install)
    with pytest.raises(error, match=words):
        Catalog.discover().load("OddForCausalLM")
    for command in (["plugin", "check", "OddForCausalLM"], ["serve", str(checkpoint), "--port", "0"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert re.search("actorllm: error: .*" + words, said) and "Traceback" not in said


@pytest.mark.parametrize(
    ("damage", "states"),
    [(broken, ["ready"]), (ambiguous, ["ambiguous"] * 2), (outdated, ["outdated"]), (invalid_kind, ["ready"]), (missing, [])],
)
def test_listing_shows_them_without_importing(install: Install, capsys, damage: Callable[[Install], None], states: list[str]) -> None:
    damage(install)
    assert main(["plugin", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows if row["architecture"] == "OddForCausalLM"] == states
    assert {"LlamaForCausalLM", "EchoForCausalLM"} <= {row["architecture"] for row in rows}
    assert "odd_one" not in sys.modules
    assert main(["plugin", "list"]) == 0
    shown = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("OddForCausalLM")]
    assert [state for state in shown if state.isupper()] == [state.upper() for state in states if state != "ready"]


def test_a_sound_one_is_checked_and_reported(install: Install, capsys) -> None:
    install(SOUND)
    assert main(["plugin", "check", "OddForCausalLM"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(CULPRIT, lines[0])
    assert lines[-1] == f"{len(lines) - 4} of {len(lines) - 2} checks passed for OddForCausalLM, 2 could not be made"
    assert [line.split()[:2] for line in lines[1:-1] if not line.startswith("ok ")] == [["skip", "claims_all"], ["skip", "transformers"]]


def test_entry_points_that_cannot_be_read_hide_nobody_else(install: Install, tmp_path: Path, caplog) -> None:
    install(SOUND)
    (tmp_path / "site-packages" / "odd_one-1.0.dist-info" / "entry_points.txt").write_text("[actorllm.models.v1]\nnonsense\n")
    architectures = {plugin.architecture for plugin in Catalog.discover().plugins}
    assert "EchoForCausalLM" in architectures and "OddForCausalLM" not in architectures
    assert "odd-one" in caplog.text
