"""The training script: what it writes is a checkpoint that others read, and an interrupted run ends where a whole one ends."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

from examples.train_demo.batches import IGNORED, batch
from examples.train_demo.conversation import Message
from examples.train_demo.train import Recipe, Training, learning_share
from examples.train_demo.vocabulary import BEGIN_ID, END_ID, encode, train_tokenizer

RECIPE = Recipe(num_steps=6, num_tokens=256)
CONTEXT = 1024


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(1, num_conversations=400)


def train(folder: Path, tokenizer: Tokenizer, *, until: int = RECIPE.num_steps, threads: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    Training(folder, RECIPE, device="cpu", threads=threads).run(until=until)


def test_an_interrupted_run_ends_where_a_whole_one_ends(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train(tmp_path / "whole", tokenizer)
    train(tmp_path / "parts", tokenizer, until=3)
    train(tmp_path / "parts", tokenizer, threads=2)
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_folder_is_a_checkpoint_that_transformers_reads(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train(tmp_path, tokenizer)
    ids, _ = batch(tokenizer, 0, seed=5, num_tokens=256, context_len=CONTEXT)[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    training = Training(tmp_path, RECIPE, device="cpu", threads=1)
    ends = load_file(tmp_path / "checkpoint.safetensors")
    mean = {name: 0.2 * ends[f"first/{name}"] + 0.8 * ends[f"model/{name}"] for name in training.model.state_dict()}
    assert not torch.equal(ends["first/model.norm.weight"], ends["model/model.norm.weight"])
    training.model.load_state_dict(mean)
    own = torch.nn.functional.linear(training.model.hidden(ids), training.model.model.embed_tokens.weight)
    torch.testing.assert_close(model(ids).logits, own, rtol=0.02, atol=0.02)  # the file is in float16
    assert json.loads((tmp_path / "training.json").read_text())["steps_done"] == RECIPE.num_steps
    assert "<polyline" in (tmp_path / "loss.svg").read_text()


def test_training_encodes_as_the_chat_template_writes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train(tmp_path, tokenizer, until=1)
    messages: list[Message] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What is 12 + 30?"},
        {"role": "assistant", "content": "12 + 30 = 42."},
    ]
    ids, is_learned = encode(tokenizer, messages)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, return_dict=False)
    assert ids == theirs
    learned = [token for token, counts in zip(ids, is_learned, strict=True) if counts]
    assert learned == [*tokenizer.encode("12 + 30 = 42.").ids, END_ID]


def test_batches_are_repeatable_and_targets_are_the_next_tokens(tokenizer: Tokenizer) -> None:
    parts = batch(tokenizer, 11, seed=1, num_tokens=2000, context_len=60)
    again = batch(tokenizer, 11, seed=1, num_tokens=2000, context_len=60)
    assert sum(ids.numel() for ids, _ in parts) >= 2000 and max(ids.shape[1] for ids, _ in parts) == 60
    for (ids, targets), (ids_again, _) in zip(parts, again, strict=True):
        assert torch.equal(ids, ids_again) and (ids[:, 0] == BEGIN_ID).all()
        counts = targets[:, :-1] != IGNORED
        assert counts.any() and torch.equal(targets[:, :-1][counts], ids[:, 1:][counts])


def test_the_learning_rate_rises_and_falls_to_nothing_twice() -> None:
    shares = [learning_share(step, 8000) for step in range(8000)]
    first, second = shares[:7000], shares[7000:]
    assert first[0] < 0.1 and max(first) > 0.9 and first[3500] == 0.5 and 0 < first[-1] < 0.01
    assert second[0] < 0.1 and 0.4 < max(second) < 0.5 and second[500] == 0.25 and 0 < second[-1] < 0.01
