"""Every architecture of the checkout, served by the real scheduler: replayed decode steps give what steps without replay give, to
the last bit, while rows come and go."""

import random
from pathlib import Path

import pytest
import torch

from actorllm.cache.sizing import GroupSize
from actorllm.execution.runner import ResidentRunner, RunnerSizes
from actorllm.models.catalog import find_model
from actorllm.settings import SchedulingSettings
from actorllm.testing.drive import Drive
from actorllm.testing.model_checks import ModelCase, tiny_config
from actorllm_kernels.native import library
from tests.house.architecture_table import checkout_catalog

ARCHITECTURES = [plugin.architecture for plugin in checkout_catalog(Path(__file__).resolve().parents[2]).plugins]
NUM_ROWS, NUM_SLOTS, CONTEXT = 4, 400, 60

HAVE_EXPERTS = {"DeepseekV2ForCausalLM", "GptOssForCausalLM", "MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"}
"""Which experts a token takes differs, and with it the work: these are computed as ever, and say why."""


def served(case: ModelCase, *, replays_decode: bool) -> tuple[Drive, ResidentRunner]:
    """Ten requests of different lengths over four rows, some greedy and some not."""
    model = case.build()
    groups = tuple(GroupSize(group.name, NUM_SLOTS, window=group.window) for group in model.cache_groups)
    settings = SchedulingSettings(max_running=NUM_ROWS, max_step_tokens=16, depth=2)
    drive = Drive(settings, groups, context=CONTEXT, vocab_size=model.config.vocab_size)
    sizes = RunnerSizes(num_slots=(NUM_SLOTS,) * len(groups), max_running=NUM_ROWS, context=CONTEXT)
    runner = ResidentRunner(model, sizes, dtype=torch.float32, device=torch.device("cpu"))
    if not replays_decode:
        runner.decode = None
    drive.device = runner  # type: ignore[assignment]
    rng = random.Random(0)
    for number in range(10):
        ids = [rng.randrange(model.config.vocab_size) for _ in range(rng.randint(1, 20))]
        drive.add(str(number), ids, max_tokens=rng.randint(4, 24), temperature=0.8 * (number % 2), logprobs=0)
    drive.run()
    return drive, runner


@pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replayed_steps_give_the_same(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    model_class = find_model(architecture)
    case = ModelCase(model_class, tiny_config(model_class, architecture))
    with caplog.at_level("DEBUG", "actorllm.execution.decode_replay"):
        (replayed, runner), (plain, _) = served(case, replays_decode=True), served(case, replays_decode=False)
    assert {key: (choice.ids, choice.logprobs) for key, choice in replayed.choices.items()} == {
        key: (choice.ids, choice.logprobs) for key, choice in plain.choices.items()
    }
    assert runner.decode is not None
    if architecture in HAVE_EXPERTS:
        assert "depends on numbers" in caplog.text and runner.decode.num_replays == 0
    else:
        assert caplog.text == "" and runner.decode.num_replays > len(replayed.steps) // 3
