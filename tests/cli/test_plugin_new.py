"""`actorllm plugin new`: the draft of a Llama-like checkpoint passes the kit, and what it does not understand is listed."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from actorllm.cli.main import main
from actorllm.testing.checkpoint_checks import CheckpointCase, run_checkpoint_checks
from actorllm.testing.model_checks import ModelCase, run_checks
from actorllm.testing.reference import randomize

SIZES: dict[str, Any] = {
    "vocab_size": 70, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 12, "max_position_embeddings": 128, "rms_norm_eps": 1e-3,
}  # fmt: skip
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"attention_bias": True, "mlp_bias": True, "rope_theta": 500.0},
    "Qwen3ForCausalLM": {"tie_word_embeddings": True},
    "MistralForCausalLM": {"sliding_window": 11},
}


def save_checkpoint(architecture: str, folder: Path, **settings: Any) -> Path:
    """A random model of transformers; its config.json with the settings that were given and those that matter."""
    model_class = getattr(transformers, architecture)
    model = model_class(model_class.config_class(**SIZES, **settings)).eval()
    randomize(model, 3)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    kept = {"architectures", "model_type", "rope_parameters", "hidden_act", "tie_word_embeddings", *SIZES, *settings}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in written.items() if key in kept}))
    return folder


def draft(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run `plugin new` in `folder`; the package's folder."""
    monkeypatch.chdir(folder)
    assert main(["plugin", "new", "actorllm-novice", "--from", str(source)]) == 0
    return folder / "actorllm-novice"


def load(package: Path, architecture: str) -> Any:
    """The drafted class, imported from its file."""
    spec = spec_from_file_location("drafted_model", package / "actorllm_novice" / "model.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["drafted_model"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return getattr(module, architecture)


@pytest.mark.parametrize("architecture", CHECKPOINTS)
def test_the_draft_of_a_llama_like_model_passes_every_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    source = save_checkpoint(architecture, tmp_path / "model", **CHECKPOINTS[architecture])
    package = draft(source, tmp_path, monkeypatch)
    model_class = load(package, architecture)
    results = run_checks(ModelCase(model_class, model_class.example_config))
    results += run_checkpoint_checks(CheckpointCase.read(model_class, source))
    assert not [(result.name, result.reason) for result in results if result.reason]
    assert not [result.skipped for result in results if result.skipped]


def test_a_whole_package_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    package = draft(save_checkpoint("Qwen3ForCausalLM", tmp_path / "model"), tmp_path, monkeypatch)
    said = capsys.readouterr().out
    files = sorted(str(path.relative_to(package)) for path in package.rglob("*") if path.is_file())
    assert files == [
        ".github/workflows/test.yml", "README.md", "actorllm_novice/__init__.py", "actorllm_novice/model.py",
        "actorllm_novice/py.typed", "actorllm_novice/tiny_config.json", "pyproject.toml", "tests/test_model.py",
    ]  # fmt: skip
    assert all(name in said for name in files)
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["actorllm.models.v1"] == {"Qwen3ForCausalLM": "actorllm_novice.model:Qwen3ForCausalLM"}
    model = (package / "actorllm_novice/model.py").read_text()
    assert "#   model.layers.{0..2}.self_attn.k_proj.weight [36, 48]\n" in model and "no module claims" not in model
    test = [line for line in (package / "tests/test_model.py").read_text().splitlines() if line and not line.startswith('"')]
    assert len(test) == 3  # two imports, one line of test
    checks = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "130", "--select", "E,F,I,UP,B,SIM", "."]
    done = subprocess.run(checks, cwd=package, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_what_the_draft_does_not_understand_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "architectures": ["OddForCausalLM"],
        "n_embd": 16,
        "n_layer": 4,
        "n_head": 2,
        "twist": "x\nimport os",
        "logit_scale": 2.0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {"h.0.a.weight": torch.ones(2, 3), "h.1.a.weight": torch.ones(2, 3), "b\nimport os": torch.ones(1)},
        folder / "model.safetensors",
    )
    package = draft(folder, tmp_path, monkeypatch)
    model = (package / "actorllm_novice/model.py").read_text()
    assert "#   h.{0..1}.a.weight [2, 3]  <- no module claims this yet" in model
    assert "\nimport os" not in model
    assert '"n_embd": "hidden_size"' in model and "#   logit_scale = 2.0" in model
    assert "has to read yet: twist, logit_scale" in capsys.readouterr().out
    tiny = json.loads((package / "actorllm_novice/tiny_config.json").read_text())
    assert (tiny["n_embd"], tiny["n_layer"], tiny["n_head"], tiny["logit_scale"]) == (32, 2, 4, 2.0)
    assert json.loads((folder / "config.json").read_text()) == config


def test_tensors_that_do_not_fit_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Experts stand on one line, and what the modules ask for but the checkpoint lacks is there too."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["OddForCausalLM"], "num_experts": 64, "v_head_dim": 128, "top": 8})
    )
    names = [f"model.layers.{layer}.mlp.experts.{expert}.w{{1}}.weight" for layer in range(3) for expert in range(4)]
    save_file({name: torch.ones(2, 3) for name in [*names, "model.embed_tokens.weight"]}, folder / "model.safetensors")
    package = draft(folder, tmp_path, monkeypatch)
    comments = [line for line in (package / "actorllm_novice/model.py").read_text().splitlines() if line.startswith("#")]
    assert comments[:4] == [
        "# The checkpoint's tensors:",
        "#   model.embed_tokens.weight [2, 3]",
        "#   model.layers.{0..2}.mlp.experts.{0..3}.w{1}.weight [2, 3]  <- no module claims this yet",
        "#   model.norm.weight  <- a module asks for this, and it is not there",
    ]
    assert "#   model.layers.{..}.self_attn.q_proj.weight  <- a module asks for this, and it is not there" in comments
    assert (
        "kinds of tensors that do not fit the draft yet: 11, marked at the head of actorllm_novice/model.py"
        in capsys.readouterr().out
    )
    tiny = json.loads((package / "actorllm_novice/tiny_config.json").read_text())
    assert (tiny["num_experts"], tiny["v_head_dim"], tiny["top"]) == (16, 16, 8)


def test_an_architecture_that_is_served_already_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    source = save_checkpoint("LlamaForCausalLM", tmp_path / "model")
    draft(source, tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "actorllm-llama serves LlamaForCausalLM already: uninstall one of the two before you use the other"
    assert lines[-1] == f"next: pip install -e actorllm-novice && actorllm plugin check LlamaForCausalLM --checkpoint {source}"


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    source = save_checkpoint("LlamaForCausalLM", tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["plugin", "new", "actorllm-novice", "--from", str(source)]) == 2
    assert capsys.readouterr().err.endswith("actorllm: error: cannot write actorllm-novice: No space left on device\n")


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("Actor LLM", {"architectures": ["A"]}, "'Actor LLM' cannot be a package's name"),
        ("../up", {"architectures": ["A"]}, "cannot be a package's name"),
        ("class", {"architectures": ["A"]}, "'class' cannot be a package's name: to Python"),
        ("actorllm-echo", {"architectures": ["A"]}, "to Python actorllm_echo means something else already"),
        ("mine", {"architectures": ["A:\nimport os"]}, "architectures must be a list of one class name"),
        ("mine", {}, "architectures must be a list of one class name"),
        ("mine", None, "config.json"),
        ("taken", {"architectures": ["A"]}, "taken exists already"),
    ],
)
def test_what_cannot_be_drafted_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str, config: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "taken"):
        (tmp_path / folder).mkdir()
    if config is not None:
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    before = sorted(tmp_path.rglob("*"))
    assert main(["plugin", "new", name, "--from", "model"]) == 2
    assert re.fullmatch(rf"actorllm: error: .*{re.escape(words)}.*\n", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before
