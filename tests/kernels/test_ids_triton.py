"""Rows of embeddings and sampled ids by row: the Triton kernels against their references.

`KERNEL_CASES` is how many random shapes of each are compared (12 by default).
"""

import os
from random import Random

import pytest
import torch

from actorllm_kernels.embedding import embedding
from actorllm_kernels.embedding import reference as embedding_reference
from actorllm_kernels.token_ids import reference as ids_reference

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels.embedding import triton as embedding_triton
from actorllm_kernels.token_ids import triton as ids_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NUM_CASES = int(os.environ.get("KERNEL_CASES", "12"))


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_embeddings_equal_the_reference(seed):
    """A whole table, and a part of one that lacks some of the ids; ids that lie apart and come twice, and none."""
    rng, generator = Random(seed), torch.Generator().manual_seed(seed)
    size, vocab_size = rng.choice((3, 64, 1024, 1500, rng.randint(1, 3000))), rng.choice((1, 11, 300))
    table = torch.randn(vocab_size, size + rng.choice((0, 5)), generator=generator).to(DEVICE, DTYPES[seed % 3])[:, :size]
    ids = torch.randint(0, vocab_size, (2 * rng.choice((0, 1, 6, 40)),), generator=generator).to(DEVICE)
    ids = rng.choice((ids, ids[::2]))
    assert embedding_triton.suits(ids, table)
    assert torch.equal(embedding_triton.embedding(ids, table), table[ids])
    begin = rng.randint(0, vocab_size - 1)
    part = table[begin : begin + rng.randint(1, vocab_size)]
    got = embedding_triton.embedding(ids, part, first_id=begin)
    assert torch.equal(got, embedding_reference.embedding(ids, part, first_id=begin))


def test_the_parts_of_ranks_add_up():
    table, ids = torch.randn(10, 40).to(DEVICE), torch.tensor([9, 0, 4, 5, 6, 2], device=DEVICE)
    for operator in (embedding_triton.embedding, embedding_reference.embedding, embedding):
        parts = [operator(ids, table[begin:end], first_id=begin) for begin, end in ((0, 4), (4, 5), (5, 10))]
        assert not parts[1][ids != 4].any()
        assert torch.equal(sum(parts[1:], parts[0]), table[ids])


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_sampled_ids_are_read_by_the_next_step(seed):
    rng, generator = Random(seed), torch.Generator().manual_seed(seed)
    num_rows = rng.choice((0, 1, 64, 300, rng.randint(1, 600)))
    rows = torch.randperm(num_rows + 4, generator=generator)[:num_rows].to(DEVICE)
    sampled = torch.randint(-1, 50, (num_rows,), generator=generator).to(DEVICE)
    ours, theirs = (torch.full((num_rows + 4,), 7, device=DEVICE) for _ in range(2))
    ids_triton.scatter_ids(sampled, rows, ours)
    ids_reference.scatter_ids(sampled, rows, theirs)
    assert torch.equal(ours, theirs)
    known = torch.where(torch.arange(num_rows, device=DEVICE) % 3 == 0, 99, -1)
    read = ids_triton.gather_ids(known, rows, ours)
    assert torch.equal(read, ids_reference.gather_ids(known, rows, theirs))
    assert torch.equal(read, torch.where(known == 99, 99, sampled.clamp(min=0)))


def test_an_id_of_its_own_needs_no_row():
    last, out_of_bounds = torch.tensor([5], device=DEVICE), torch.tensor([2**40, 0], device=DEVICE)
    got = ids_triton.gather_ids(torch.tensor([3, -1], device=DEVICE), out_of_bounds, last)
    assert got.tolist() == [3, 5]
