"""Every architecture of the checkout passes the whole conformance kit with the config that `actorllm plugin check` tries it with."""

from pathlib import Path

import pytest

from actorllm.models.catalog import find_model
from actorllm.testing.model_checks import ModelCase, run_checks, tiny_config
from tests.house.architecture_table import checkout_catalog

ARCHITECTURES = [plugin.architecture for plugin in checkout_catalog(Path(__file__).resolve().parents[2]).plugins]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_whole_kit(architecture: str) -> None:
    model_class = find_model(architecture)
    results = run_checks(ModelCase(model_class, tiny_config(model_class, architecture)))
    assert {result.name: result.reason for result in results if result.reason} == {}
