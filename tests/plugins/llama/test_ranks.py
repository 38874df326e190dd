"""A model split over thread ranks computes what one rank does, whatever joins them and however uneven the parts are."""

import pytest
import torch
from torch import distributed

from actorllm.layers.process_group import ProcessGroup
from actorllm.layers.shard import Shard
from actorllm.testing.tiny import logits_in_chunks, on_thread_ranks
from actorllm.weights.random import RandomWeights
from actorllm.weights.source import load_module
from actorllm_llama.qwen3 import Qwen3ForCausalLM

IDS = list(range(12))


def logits(shard: Shard, heads: tuple[int, int]) -> torch.Tensor:
    config = {
        "vocab_size": 21, "hidden_size": 16, "intermediate_size": 25, "num_hidden_layers": 2, "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1], "head_dim": 6, "max_position_embeddings": 32, "attention_bias": True,
    }  # fmt: skip
    model = Qwen3ForCausalLM(Qwen3ForCausalLM.config_class.from_hf(config), shard)
    load_module(model, RandomWeights(0, std=0.3))
    return logits_in_chunks(model, IDS, sizes=[5, 1])


@pytest.mark.parametrize(("num_ranks", "heads"), [(2, (6, 3)), (2, (4, 1)), (4, (4, 2)), (3, (6, 6))])
def test_ranks_in_memory(num_ranks, heads):
    expected = logits(Shard(), heads)
    for got in on_thread_ranks(num_ranks, lambda shard: logits(shard, heads)):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_ranks_joined_by_gloo():
    store = distributed.HashStore()
    ranks = on_thread_ranks(
        2, lambda shard: logits(shard, (4, 2)), join=lambda rank: ProcessGroup.gloo(store, rank, num_ranks=2, timeout=30)
    )
    for got in ranks:
        torch.testing.assert_close(got, logits(Shard(), (4, 2)), atol=1e-4, rtol=0)


def test_a_failing_rank_leaves_no_other_waiting():
    def work(shard: Shard) -> torch.Tensor:
        if shard.rank == 1:
            raise ValueError("this rank fails")
        return shard.collectives.all_reduce(torch.ones(1))

    with pytest.raises((ValueError, RuntimeError)):
        on_thread_ranks(2, work)
