"""A package that `actorllm plugin new` wrote is installed far from the checkout, and its own tests pass there."""

import json

import pytest

from tests.cli.test_plugin_new import save_checkpoint
from tests.packaging.conftest import Installation


@pytest.mark.timeout(240)
def test_a_drafted_package_is_installed_and_passes_its_tests(workshop: Installation) -> None:
    model = save_checkpoint("Qwen3ForCausalLM", workshop.folder / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["NoviceForCausalLM"], "model_type": "novice"}))
    workshop.run("actorllm", "plugin", "new", "actorllm-novice", "--from", str(model))
    package = workshop.folder / "actorllm-novice"
    workshop.pip_install(str(package))
    assert "passed" in workshop.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package))
