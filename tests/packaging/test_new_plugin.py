"""A package that `actorllm plugin new` wrote is installed far from the checkout, and its own tests pass there."""

import json
from pathlib import Path

import pytest

from tests.cli.test_plugin_new import save_checkpoint
from tests.packaging.conftest import Installation, new_installation


@pytest.fixture
def elsewhere(wheels: dict[str, Path], tmp_path: Path) -> Installation:
    """An environment of its own: what is installed here must not be found by other tests."""
    return new_installation(wheels, tmp_path)


@pytest.mark.timeout(240)
def test_a_drafted_package_is_installed_and_passes_its_tests(elsewhere: Installation) -> None:
    model = save_checkpoint("Qwen3ForCausalLM", elsewhere.folder / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["NoviceForCausalLM"], "model_type": "novice"}))
    elsewhere.run("actorllm", "plugin", "new", "actorllm-novice", "--from", str(model))
    package = elsewhere.folder / "actorllm-novice"
    elsewhere.pip_install(str(package))
    assert "passed" in elsewhere.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package))
    report = elsewhere.run("actorllm", "plugin", "check", "NoviceForCausalLM", "--checkpoint", str(model))
    assert report.startswith("NoviceForCausalLM = actorllm_novice.model:NoviceForCausalLM of actorllm-novice 0.1.0\n")
    assert "FAIL" not in report
