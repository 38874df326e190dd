"""Rows of embeddings and sampled ids by row: the Triton kernels against their references."""

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 1024, 1500])
def test_rows_of_a_table(dtype, size):
    table = torch.randn(11, size + 5, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)[:, :size]
    ids = torch.tensor([10, 0, 3, 3, 9, 1], device=DEVICE)
    for chosen in (ids, ids[::2], ids[:0]):
        assert torch.equal(embedding_triton.embedding(chosen, table), table[chosen])


def test_the_parts_of_ranks_add_up():
    table, ids = torch.randn(10, 40).to(DEVICE), torch.tensor([9, 0, 4, 5, 6, 2], device=DEVICE)
    for operator in (embedding_triton.embedding, embedding_reference.embedding, embedding):
        parts = [operator(ids, table[begin:end], first_id=begin) for begin, end in ((0, 4), (4, 5), (5, 10))]
        assert not parts[1][ids != 4].any()
        assert torch.equal(sum(parts[1:], parts[0]), table[ids])


@pytest.mark.parametrize("num_rows", [1, 300])
def test_sampled_ids_are_read_by_the_next_step(num_rows):
    generator = torch.Generator().manual_seed(num_rows)
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
