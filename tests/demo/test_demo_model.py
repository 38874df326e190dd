"""The demo model in the package: its files, its card, and how it answers questions that its training has never seen."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

import actorllm
from actorllm import Engine
from tests.demo.judge import Score, judge, read_held_out, settings

DEMO = Path(actorllm.__file__).parent / "demo"
FILES = {
    "README.md", "config.json", "generation_config.json", "loss.svg", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json",
}  # fmt: skip
MAX_BYTES = 8_000_000
LEAST = {"questions": 54, "turns": 27, "dialogues": 8}
"""What the model in the package reaches, less some room for rounding; nine of ten are aimed at."""


def test_the_package_holds_a_small_model_with_its_card() -> None:
    assert {path.name for path in DEMO.iterdir()} == FILES
    assert (DEMO / "model.safetensors").stat().st_size <= MAX_BYTES
    card = (DEMO / "README.md").read_text()
    assert not [title for title in ("## Data", "## Size", "## Limits", "## Scores") if title not in card]


def test_the_card_and_the_record_of_the_training_name_the_real_size() -> None:
    with safe_open(DEMO / "model.safetensors", framework="pt") as file:
        num_parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert f"{num_parameters:,} parameters" in (DEMO / "README.md").read_text()
    record = json.loads((DEMO / "training.json").read_text())
    assert record["steps_done"] == record["num_steps"]


def test_there_is_as_much_to_judge_as_promised() -> None:
    held_out = read_held_out()
    asks = [ask for asks in held_out.conversations for ask in asks]
    assert len(held_out.questions) == 60 and [len(dialogue) for dialogue in held_out.dialogues] == [3] * 10
    assert len({ask.ask for ask in asks}) == len(asks)
    assert not [ask.ask for ask in asks if ask.accepts("", [""] * 3)], "an empty answer is never right"


def test_none_of_it_was_there_when_the_training_was_chosen() -> None:
    held_out, development = (
        {ask.ask.lower() for asks in read_held_out(path).conversations for ask in asks}
        for path in (Path(__file__).parent / name for name in ("held_out.json", "development.json"))
    )
    assert held_out and development and not held_out & development


@pytest.mark.parametrize("temperature", [0.0, 0.7])
async def test_held_out_questions_are_answered_as_well_as_the_card_says(temperature: float) -> None:
    async with Engine(settings()) as engine:
        verdicts = await judge(engine, read_held_out(), temperature=temperature)
    score = Score.of(verdicts)
    wrong = [(verdict.ask, verdict.answer) for turns in verdicts for verdict in turns if not verdict.is_right]
    assert score.questions[0] >= LEAST["questions"], (str(score), wrong)
    assert score.turns[0] >= LEAST["turns"], (str(score), wrong)
    assert score.dialogues[0] >= LEAST["dialogues"], (str(score), wrong)
