"""The catalog finds plugins by metadata alone, and each way to be wrong has its own error that names the culprit."""

import sys
from importlib.metadata import Distribution

import pytest

from actorllm.errors import PluginAmbiguous, PluginBroken, PluginInvalid, PluginMissing, PluginOutdated
from actorllm.models.catalog import Catalog

GROUP = "actorllm.models.v1"
MODULE = """
from actorllm.models.contract import CausalLM

class Config:
    @classmethod
    def from_hf(cls, config): ...

class TinyForCausalLM(CausalLM):
    config_class = Config
    cache_groups = ()
    def embed(self, batch): ...
    def layer(self, index): ...
    def norm(self, state): ...
    def head(self, hidden_TD): ...

class NoConfig(CausalLM): ...

class OldConfig(CausalLM):
    config_class = dict

not_a_class = 3
"""


class Installed(Distribution):
    """A distribution that exists in memory only."""

    def __init__(
        self, name: str | None = "tiny-plugin", version: str = "1.2", *, group: str = GROUP, **architectures: str
    ) -> None:
        lines = [f"[{group}]", *(f"{architecture} = {value}" for architecture, value in architectures.items())]
        self._files = {"entry_points.txt": "\n".join(lines)}
        if name is not None:
            self._files["METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename):
        return self._files.get(filename)

    def locate_file(self, path):
        return path


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Puts a module on the path for this test; gives its name."""

    def add(source: str) -> str:
        name = f"tiny_plugin_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return add


def test_loads_the_class(module):
    name = module(MODULE)
    catalog = Catalog.discover([Installed(TinyForCausalLM=f"{name}:TinyForCausalLM")])
    assert catalog.load("TinyForCausalLM").__name__ == "TinyForCausalLM"


def test_discovery_imports_nothing(module):
    name = module("raise SystemExit('imported')")
    catalog = Catalog.discover([Installed(A=f"{name}:A"), Installed("other", "3", B=f"{name}:B")])
    assert [(plugin.architecture, plugin.distribution, plugin.version) for plugin in catalog.plugins] == [
        ("A", "tiny-plugin", "1.2"),
        ("B", "other", "3"),
    ]
    assert name not in sys.modules


def test_other_groups_are_none_of_ours():
    assert (
        Catalog.discover([Installed(group="console_scripts", A="a:A"), Installed(group="actorllm.models.vx", A="a:A")]).plugins
        == ()
    )


def test_missing_lists_what_is_installed_and_close_names():
    catalog = Catalog.discover([Installed(LlamaForCausalLM="x:L", Qwen2ForCausalLM="x:Q")])
    with pytest.raises(PluginMissing, match=r"Qwen9ForCausalLM.*Close names: Qwen2ForCausalLM.*Installed: Llama.*Qwen2"):
        catalog.load("Qwen9ForCausalLM")
    with pytest.raises(PluginMissing, match="Installed: none"):
        Catalog([]).load("LlamaForCausalLM")


@pytest.mark.parametrize(
    "source", ["import a_module_that_does_not_exist", "1 / 0", "def f(:", "raise SystemExit(3)", "TinyForCausalLM_ = 1"]
)
def test_broken_names_distribution_version_entry_point_and_cause(module, source):
    name = module(source)
    catalog = Catalog.discover([Installed(TinyForCausalLM=f"{name}:TinyForCausalLM")])
    with pytest.raises(PluginBroken, match=rf"{name}:TinyForCausalLM of tiny-plugin 1\.2 raised \w+") as caught:
        catalog.load("TinyForCausalLM")
    assert caught.value.__cause__ is not None


def test_ambiguous_names_both():
    catalog = Catalog.discover([Installed("one", "1", A="x:A"), Installed("two", "2", A="y:A")])
    with pytest.raises(PluginAmbiguous, match=r"x:A of one 1; .*y:A of two 2"):
        catalog.load("A")


def test_the_same_distribution_seen_twice_is_one():
    assert len(Catalog.discover([Installed(A="x:A"), Installed(A="x:A")]).plugins) == 1


@pytest.mark.parametrize("version", [0, 2, 10])
def test_another_version_of_the_contract_is_outdated(version):
    catalog = Catalog.discover([Installed(group=f"actorllm.models.v{version}", A="x:A")])
    with pytest.raises(PluginOutdated, match=rf"x:A of tiny-plugin 1\.2 speaks version {version} .*actorllm\.models\.v1"):
        catalog.load("A")


def test_the_current_version_wins_over_an_old_one(module):
    name = module(MODULE)
    current = Installed(A=f"{name}:TinyForCausalLM")
    assert Catalog.discover([Installed(group="actorllm.models.v0", A="x:A"), current]).load("A").__name__ == "TinyForCausalLM"


@pytest.mark.parametrize("attribute", ["NoConfig", "OldConfig", "not_a_class", "Config"])
def test_invalid_says_what_the_contract_asks_for(module, attribute):
    name = module(MODULE)
    catalog = Catalog.discover([Installed(A=f"{name}:{attribute}")])
    with pytest.raises(PluginInvalid, match=r"tiny-plugin 1\.2.*(CausalLM|from_hf)"):
        catalog.load("A")


def test_damaged_metadata_does_not_hide_the_others():
    catalog = Catalog.discover([Installed(None, A="x:A"), Installed(B="x:B")])
    assert [plugin.architecture for plugin in catalog.plugins] == ["A", "B"]
