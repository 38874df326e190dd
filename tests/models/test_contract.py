"""What the runner may rely on: the state of a model is opaque, and its checkpoint's quirks are declared data."""

from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from actorllm.execution.forward import forward
from actorllm.layers.batch import Batch, GivenEmbeddings
from actorllm.layers.embedding import Embedding, Head
from actorllm.layers.linear import ColumnLinear
from actorllm.layers.shard import Shard
from actorllm.models.contract import CausalLM
from actorllm.models.loading import load_weights
from actorllm.testing.tiny import TinyCache, logits_of
from actorllm.weights.checkpoint import Checkpoint
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module
from actorllm_llama.llama import LlamaForCausalLM

CONFIG = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32,
}  # fmt: skip


class PendingState(NamedTuple):
    """A hidden state with a residual that the next layer adds."""

    hidden: Tensor
    residual: Tensor


class PendingLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = ColumnLinear(4, 4, name="fc", shard=Shard())

    def forward(self, state: PendingState, batch: Batch) -> PendingState:
        residual = state.hidden + state.residual
        return PendingState(self.fc(residual), residual)


class PendingConfig(NamedTuple):
    vocab_size: int = 6
    context_len: int = 8
    num_layers: int = 2


class PendingLM(CausalLM):
    """Two linear layers over embeddings; its checkpoints hold "old.blocks" with Conv1D linears."""

    config_class = PendingConfig
    renamed_prefixes = {"old.blocks.": "layers."}
    transposed_linears = ("layers.*.fc",)
    cache_groups = ()

    def __init__(self) -> None:
        super().__init__(PendingConfig(), Shard())
        self.tokens = Embedding(6, 4)
        self.layers = nn.ModuleList(PendingLayer() for _ in range(2))
        self.lm_head = Head(4, 6, shard=Shard())

    def embed(self, batch: Batch) -> PendingState:
        hidden = self.tokens(batch.token_ids_T)
        return PendingState(hidden, torch.zeros_like(hidden))

    def layer(self, index: int) -> nn.Module:
        return self.layers[index]

    def norm(self, state: PendingState) -> Tensor:
        return state.hidden + state.residual

    def head(self, hidden_TD: Tensor) -> Tensor:
        return self.lm_head(hidden_TD)


def test_a_state_of_several_tensors_and_declared_quirks(tmp_path):
    generator = torch.Generator().manual_seed(0)
    names = ("tokens.weight", "old.blocks.0.fc.weight", "old.blocks.1.fc.weight", "lm_head.weight")
    tensors = {name: torch.randn(4 if "fc" in name else 6, 4, generator=generator) for name in names}
    save_file(tensors, tmp_path / "model.safetensors")
    model = PendingLM()
    with Checkpoint.open(tmp_path) as checkpoint:
        load_weights(model, checkpoint)
    x = tensors["tokens.weight"][[1, 5]]
    for index in range(2):
        x = x + x @ tensors[f"old.blocks.{index}.fc.weight"]
    got = logits_of(model, TinyCache(model.cache_groups), [(0, [1, 5])])
    torch.testing.assert_close(got, x @ tensors["lm_head.weight"].T)


@torch.inference_mode()
def test_given_embeddings_take_the_place_of_tokens():
    model = LlamaForCausalLM(LlamaForCausalLM.config_class.from_hf(CONFIG), Shard())
    load_module(model, RandomWeights(0, std=0.3))
    plain = model.head(model.norm(forward(model, TinyCache(model.cache_groups).batch([(0, [1, 2, 3, 4])]))))
    table = model.model.embed_tokens.table
    assert table is not None
    batch = TinyCache(model.cache_groups).batch([(0, [1, 0, 0, 4])])
    batch.given = (GivenEmbeddings(1, table.rows(torch.tensor([2, 3]))),)
    assert torch.equal(model.head(model.norm(forward(model, batch))), plain)
