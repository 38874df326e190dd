"""Which device a model runs on, and what is said where it cannot."""

import pytest
import torch

from actorllm.errors import SettingsError
from actorllm.execution import device_choice
from actorllm.execution.device_choice import chosen_device
from actorllm.settings import ExecutionSettings


@pytest.mark.parametrize(("best", "device"), [("cpu", torch.device("cpu")), ("cuda", torch.device("cuda", 0))])
def test_without_a_word_it_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch, best: str, device: torch.device) -> None:
    monkeypatch.setattr(device_choice, "best_device", lambda: best)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device(ExecutionSettings()) == device
    assert chosen_device(ExecutionSettings(device="cpu")) == torch.device("cpu")
    assert chosen_device(ExecutionSettings(device="cuda:1")) == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ExecutionSettings(device="tpu"), "does not exist; use --device cpu"),
        (ExecutionSettings(device="meta"), "is not served; use --device cpu"),
        (ExecutionSettings(device="cuda"), "sees no CUDA device here; use --device cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, settings: ExecutionSettings, words: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=words):
        chosen_device(settings)
