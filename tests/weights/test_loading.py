"""A whole model against its checkpoint: both must fit exactly, and layers come and go one at a time."""

import pytest
import torch
from safetensors.torch import save_file

from actorllm.errors import TensorLeftOver, TensorMissing
from actorllm.layers.shard import Shard
from actorllm.models.loading import load_weights
from actorllm.testing.tiny import logits_in_chunks
from actorllm.weights.checkpoint import Checkpoint
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module, unload_module
from actorllm_llama.llama import LlamaForCausalLM

CONFIG = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
IDS = [1, 2, 3, 4, 5, 6]


class Recorder(RandomWeights):
    """Keeps every whole tensor that is pulled."""

    def __init__(self) -> None:
        super().__init__(0, std=0.3)
        self.tensors: dict[str, torch.Tensor] = {}

    def read(self, name, shape, **part):
        self.tensors[name] = super().read(name, shape)
        return super().read(name, shape, **part)


def new_model(shard: Shard | None = None, **changes) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaForCausalLM.config_class.from_hf(CONFIG | changes), shard or Shard())


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """All tensors of the tiny model, by their names in a checkpoint."""
    recorder = Recorder()
    load_module(new_model(), recorder)
    return recorder.tensors


def load(tmp_path, tensors, model=None) -> LlamaForCausalLM:
    save_file(tensors, tmp_path / "model.safetensors")
    model = model or new_model()
    with Checkpoint.open(tmp_path) as checkpoint:
        load_weights(model, checkpoint)
    return model


def test_a_checkpoint_equals_its_source(tmp_path, tensors):
    expected = new_model()
    load_module(expected, RandomWeights(0, std=0.3))
    assert torch.equal(logits_in_chunks(load(tmp_path, tensors), IDS), logits_in_chunks(expected, IDS))


@pytest.mark.parametrize("shard", [Shard(0, 2), Shard(1, 2)])
def test_every_rank_claims_every_name(tmp_path, tensors, shard):
    load(tmp_path, tensors, new_model(shard))


def test_all_missing_tensors_are_named(tmp_path, tensors):
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        del tensors[name]
    with pytest.raises(TensorMissing, match=r"layers\.1\.mlp\.up_proj\.weight(.|\n)*model\.norm\.weight"):
        load(tmp_path, tensors)


def test_a_missing_layer_is_named_once_with_the_number_of_its_tensors(tmp_path, tensors):
    of_layer = [name for name in tensors if name.startswith("model.layers.1.")]
    for name in (*of_layer, "model.norm.weight"):
        del tensors[name]
    with pytest.raises(TensorMissing) as caught:
        load(tmp_path, tensors)
    message = caught.value.message
    assert f"lacks {len(of_layer) + 1} tensors that config.json asks for: model.layers.1 ({len(of_layer)} tensors), " in message
    assert (message.count("model.layers.1"), message.count("model.norm.weight")) == (1, 1)
    assert "download the model again" in message


def test_left_over_tensors_are_named(tmp_path, tensors):
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(1)
    with pytest.raises(TensorLeftOver, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        load(tmp_path, tensors)


def test_nothing_is_read_of_a_checkpoint_that_does_not_fit(tmp_path, tensors):
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    read: list[int] = []
    with Checkpoint.open(tmp_path, on_progress=read.append) as checkpoint, pytest.raises(TensorMissing):
        load_weights(new_model(), checkpoint)
    assert read == []


def test_every_byte_is_read_once(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    read: list[int] = []
    with Checkpoint.open(tmp_path, on_progress=read.append) as checkpoint:
        load_weights(new_model(), checkpoint)
    assert sum(read) == sum(tensor.nbytes for tensor in tensors.values())


def test_ignored_tensors_may_be_there(tmp_path, tensors):
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    load(tmp_path, tensors)


@pytest.mark.parametrize("has_copy", [False, True])
def test_a_tied_head_may_be_absent_or_a_copy(tmp_path, tensors, has_copy):
    if has_copy:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    else:
        del tensors["lm_head.weight"]
    load(tmp_path, tensors, new_model(tie_word_embeddings=True))


def test_an_untied_head_must_be_there(tmp_path, tensors):
    del tensors["lm_head.weight"]
    with pytest.raises(TensorMissing, match=r"lm_head\.weight"):
        load(tmp_path, tensors)


def test_nothing_takes_memory_before_it_is_loaded_or_after(tmp_path, tensors):
    model = new_model()
    assert not list(model.parameters()) and not list(model.buffers())
    load(tmp_path, tensors, model)
    layer = model.layer(1)
    before = logits_in_chunks(model, IDS)
    unload_module(layer)
    assert not list(layer.parameters())
    with Checkpoint.open(tmp_path) as checkpoint:
        load_module(layer, checkpoint, "model.layers.1")
    assert torch.equal(logits_in_chunks(model, IDS), before)
