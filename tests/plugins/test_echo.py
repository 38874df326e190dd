"""The echo plugin: what its bundled checkpoint says, and what its config refuses."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import actorllm_echo
from actorllm.errors import UnsupportedConfig
from actorllm_echo.bundle import files, write

CONFIG = {"vocab_size": 4, "num_hidden_layers": 1, "max_position_embeddings": 8}


def continuation(prompt: str, num_tokens: int) -> str:
    """The text that the model's own successor function walks into."""
    tokenizer = Tokenizer.from_file(str(actorllm_echo.directory() / "tokenizer.json"))
    next_ids = json.loads((actorllm_echo.directory() / "config.json").read_text())["next_ids"]
    ids = tokenizer.encode(prompt).ids
    for _ in range(num_tokens):
        ids.append(next_ids[ids[-1]])
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_the_bundled_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    write(tmp_path)
    for name in files():
        assert (tmp_path / name).read_bytes() == (actorllm_echo.directory() / name).read_bytes()


def test_any_text_walks_into_the_sentence_and_around() -> None:
    sentence = " The quick brown fox jumps over the lazy dog."
    assert continuation("Grüße, 你好", 20) == "Grüße, 你好" + 2 * sentence
    assert continuation(" over the", 3) == " over the lazy dog."


def test_an_exclamation_mark_ends_the_text() -> None:
    assert continuation("Stop!", 1) == "Stop!<|end|>"


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 0}, {"num_hidden_layers": "two"}, {"rope_theta": 1e4}, {"next_ids": [1, 2]}, {"next_ids": [0, 1, 2, 4]}],
)
def test_a_config_it_does_not_understand_is_refused(change: dict) -> None:
    actorllm_echo.EchoConfig.from_hf(CONFIG)
    with pytest.raises(UnsupportedConfig):
        actorllm_echo.EchoConfig.from_hf(CONFIG | change)
