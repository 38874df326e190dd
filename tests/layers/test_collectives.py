"""The same collectives on thread ranks in memory, and on gloo and NCCL process groups."""

import threading

import pytest
import torch
from torch import distributed

from actorllm.layers.collectives import SingleRank, ThreadRanks
from actorllm.layers.process_group import ProcessGroup

NUM_RANKS = 2


def on_threads(work):
    """`work(rank)` on a thread each; results in rank order."""
    results = [None] * NUM_RANKS

    def run(rank):
        results[rank] = work(rank)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(NUM_RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


class OnDevice:
    """One rank's NCCL group for values that lie on the host: they go to its GPU and back."""

    def __init__(self, ranks, rank):
        self._ranks = ranks
        self._device = torch.device("cuda", rank)

    def __getattr__(self, name):
        collective = getattr(self._ranks, name)
        return lambda value, *sizes: collective(value.to(self._device), *sizes).cpu()


@pytest.fixture(params=["memory", "gloo", "nccl"])
def collective(request):
    """Runs `work(collectives, rank)` on two thread ranks."""
    if request.param == "memory":
        ends = ThreadRanks.group(NUM_RANKS, timeout=20)
        return lambda work: on_threads(lambda rank: work(ends[rank], rank))
    store = distributed.HashStore()
    if request.param == "nccl":
        if torch.cuda.device_count() < NUM_RANKS:
            pytest.skip("needs two CUDA devices")

        def on_gpu(work, rank):
            torch.cuda.set_device(rank)
            return work(OnDevice(ProcessGroup.nccl(store, rank, num_ranks=NUM_RANKS, timeout=20), rank), rank)

        return lambda work: on_threads(lambda rank: on_gpu(work, rank))
    return lambda work: on_threads(lambda rank: work(ProcessGroup.gloo(store, rank, num_ranks=NUM_RANKS, timeout=20), rank))


def test_all_reduce_sums(collective):
    values = torch.randn(NUM_RANKS, 3, 4)
    for got in collective(lambda ranks, rank: ranks.all_reduce(values[rank].clone())):
        torch.testing.assert_close(got, values.sum(0))


def test_all_reduce_of_a_strided_tensor(collective):
    values = torch.randn(NUM_RANKS, 4, 3)
    for got in collective(lambda ranks, rank: ranks.all_reduce(values[rank].clone().T)):
        torch.testing.assert_close(got, values.sum(0).T)


@pytest.mark.parametrize("sizes", [(4, 4), (5, 2)])
def test_all_gather_joins_in_rank_order(collective, sizes):
    values = torch.randn(2, 3, sum(sizes)).split(sizes, dim=-1)
    for got in collective(lambda ranks, rank: ranks.all_gather(values[rank], sizes)):
        assert torch.equal(got, torch.cat(values, dim=-1))


def test_broadcast_gives_rank_0s_value(collective):
    for got in collective(lambda ranks, rank: ranks.broadcast(torch.tensor([rank + 5]))):
        assert got.tolist() == [5]


def test_many_in_a_row_do_not_mix(collective):
    def work(ranks, rank):
        return [ranks.all_reduce(torch.tensor([float(step * (rank + 1))])).item() for step in range(50)]

    assert collective(work) == [[3.0 * step for step in range(50)]] * NUM_RANKS


def test_one_rank_changes_nothing():
    value = torch.randn(2, 3)
    ranks = SingleRank()
    assert ranks.all_reduce(value) is ranks.all_gather(value, [3]) is ranks.broadcast(value) is value


def test_abort_frees_waiting_ranks_until_reset():
    ends = ThreadRanks.group(NUM_RANKS, timeout=20)
    caught = []

    def wait():
        try:
            ends[0].all_reduce(torch.ones(1))
        except threading.BrokenBarrierError as error:
            caught.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    ends[1].abort()
    thread.join(20)
    assert len(caught) == 1
    with pytest.raises(threading.BrokenBarrierError):
        ends[1].all_reduce(torch.ones(1))
    ends[0].reset()
    assert [got.item() for got in on_threads(lambda rank: ends[rank].all_reduce(torch.ones(1)))] == [2.0, 2.0]
