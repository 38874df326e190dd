"""Keys of generation_config.json: obeyed, neutral, or warned of; none is dropped in silence."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

import actorllm
import actorllm_echo
from actorllm.engine import Engine
from actorllm.errors import CheckpointError, TokenizerError
from actorllm.messages import SamplingParams
from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings
from actorllm.tokenizer.generation_config import NEUTRAL_KEYS, READ_KEYS, UNBUILT_KEYS, load_generation_config

Save = Callable[..., Path]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


def test_every_key_of_transformers_is_known_once() -> None:
    """An independent list of what a file may hold."""
    assert transformers.GenerationConfig().to_dict().keys() <= READ_KEYS | NEUTRAL_KEYS.keys() | UNBUILT_KEYS.keys()
    assert not READ_KEYS & NEUTRAL_KEYS.keys() and not READ_KEYS & UNBUILT_KEYS.keys() and not NEUTRAL_KEYS.keys() & UNBUILT_KEYS.keys()


def test_real_files_are_not_warned_of(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundled = [Path(actorllm.__file__).parent / "demo", actorllm_echo.directory()]
    folders = [*bundled, *(path.parent for path in data_dir.rglob("generation_config.json"))]
    assert len(folders) > 2
    for folder in folders:
        load_generation_config(folder).params()
    assert not caplog.records


def test_what_changes_nothing_is_not_warned_of(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    neutral = {key: values[0] if values else None for key, values in UNBUILT_KEYS.items()}
    config = {**neutral, "max_length": 20, "num_beams": 1, "typical_p": 1.0, "length_penalty": 2.0, "bad_words_ids": None}
    load_generation_config(save(generation_config={**config, "cache_implementation": "hybrid", "suppress_tokens": None}))
    assert not caplog.records


def test_what_would_change_texts_is_warned_of_by_name(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    config = {"no_repeat_ngram_size": 2, "num_beams": 4, "bad_words_ids": [[1], [2, 3]], "forced_eos_token_id": 2, "mystery": 1}
    defaults = load_generation_config(save(generation_config=config))
    unbuilt, unknown = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("no_repeat_ngram_size = 2", "num_beams = 4", "bad_words_ids of several tokens", "forced_eos_token_id = 2"):
        assert part in unbuilt
    assert unknown.endswith("change nothing: mystery")
    assert defaults.suppressed_ids == (1,)


@pytest.mark.parametrize(
    "values", [{"stop_strings": 5}, {"stop_strings": [1]}, {"stop_strings": [""]}, {"suppress_tokens": "x"}, {"bad_words_ids": [5]}]
)
def test_wrong_values_are_named(save: Save, values: dict) -> None:
    with pytest.raises(TokenizerError, match=r"generation_config\.json: (stop|suppress_tokens|bad_words_ids)"):
        load_generation_config(save(generation_config=values)).params()


def engine_with(folder: Path, **generation: object) -> Engine:
    """An engine over a copy of the echo model, which goes on " quick brown fox" after " The"."""
    shutil.copytree(actorllm_echo.directory(), folder, dirs_exist_ok=True)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **generation}))
    return Engine(EngineSettings(model=ModelSettings(path=str(folder)), execution=ExecutionSettings(threads=1, kv_slots=4096)))


async def test_stop_strings_are_the_default_stop(tmp_path: Path) -> None:
    async with engine_with(tmp_path, stop_strings=["brown"], do_sample=False) as engine:
        defaults = engine.default_params
        assert await engine.complete(" The") == [" quick "]
        own = SamplingParams(temperature=defaults.temperature, max_tokens=3, stop=("fox",))
        assert await engine.complete(" The", own) == [" quick brown "]


@pytest.mark.parametrize("key", ["suppress_tokens", "bad_words_ids"])
async def test_suppressed_tokens_are_never_sampled(tmp_path: Path, key: str) -> None:
    async with engine_with(tmp_path / "plain") as engine:
        (brown,) = await engine.encode(" brown")
        assert "brown" in (await engine.complete(" The", GREEDY))[0]
    async with engine_with(tmp_path / "suppressed", **{key: [brown] if key == "suppress_tokens" else [[brown]]}) as engine:
        (text,) = await engine.complete(" The", GREEDY)
        assert text.startswith(" quick") and "brown" not in text


async def test_a_config_that_is_no_json_is_the_checkpoints_fault(tmp_path: Path) -> None:
    engine = engine_with(tmp_path)
    (tmp_path / "config.json").write_text("{bad")
    with pytest.raises(CheckpointError, match=r"config\.json in .* is not JSON"):
        async with engine:
            pass
