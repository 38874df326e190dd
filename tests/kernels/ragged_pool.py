"""Ragged batches over shuffled slots, and the formula of attention written out for them."""

import math
import random
from types import ModuleType

import torch

from actorllm_kernels.attention import RaggedKeys, flat_spans, reference
from actorllm_kernels.rotary_store import store

HEAD_DIM = 8
NUM_SLOTS = 512


def dense(q_QHD, k_LKD, v_LKD, *, window, scale, soft_cap=None, sinks_H=None, slopes_H=None):
    """[Q, H, D] the formula itself, in float64; the queries are the last of the sequence."""
    num_queries, num_keys = len(q_QHD), len(k_LKD)
    repeats = q_QHD.shape[1] // k_LKD.shape[1]
    k, v = (x.double().repeat_interleave(repeats, dim=1) for x in (k_LKD, v_LKD))
    scores = torch.einsum("qhd,lhd->hql", q_QHD.double(), k) * scale
    if soft_cap is not None:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    for query in range(num_queries):
        position = num_keys - num_queries + query
        for key in range(num_keys):
            if slopes_H is not None:
                scores[:, query, key] -= slopes_H.double() * (position - key)
            if key > position or (window is not None and key <= position - window):
                scores[:, query, key] = -math.inf
    weights = scores.exp()
    total = weights.sum(-1, keepdim=True)
    if sinks_H is not None:
        total = total + sinks_H.double().exp().view(-1, 1, 1)
    return torch.einsum("hql,lhd->qhd", weights / total, v)


class Pool:
    """A pool whose rows are stored at shuffled slots; everything else in it is NaN."""

    def __init__(
        self, lens: list[tuple[int, int]], num_heads: int, num_kv_heads: int, *, seed: int = 0, head_dim: int = HEAD_DIM
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        num_slots = max(NUM_SLOTS, sum(seq_len for _, seq_len in lens))
        slots = random.Random(seed).sample(range(num_slots), num_slots)
        self.k, self.v = (torch.full((num_slots, num_kv_heads, head_dim), torch.nan) for _ in range(2))
        self.table = torch.zeros(len(lens), max(seq_len for _, seq_len in lens) + 3, dtype=torch.int32)
        self.rows = []
        for row, (query_len, seq_len) in enumerate(lens):
            taken = torch.tensor([slots.pop() for _ in range(seq_len)])
            self.table[row, :seq_len] = taken
            k, v = torch.randn(2, seq_len, num_kv_heads, head_dim, generator=generator)
            store(k, taken, self.k)
            store(v, taken, self.v)
            self.rows.append((torch.randn(query_len, num_heads, head_dim, generator=generator), k, v))

        self.spans = flat_spans((row, *each) for row, each in enumerate(lens))

    def keys(self, window: int | None = None, device: str = "cpu") -> RaggedKeys:
        return RaggedKeys(self.spans, self.table.to(device), window)

    def share_prefix(self, num_keys: int) -> None:
        """Every row reads its first keys from the slots of row 0, as after a hit in a prefix tree."""
        _, k0, v0 = self.rows[0]
        for row, (q, k, v) in enumerate(self.rows):
            shared = min(num_keys, len(k0), len(k))
            self.table[row, :shared] = self.table[0, :shared]
            k[:shared], v[:shared] = k0[:shared], v0[:shared]
            self.rows[row] = (q, k, v)

    def attend(self, operator: ModuleType = reference, window: int | None = None, scale: float = 0.3, **extras) -> torch.Tensor:
        keys = self.keys(window)
        return operator.attend(torch.cat([q for q, _, _ in self.rows]), self.k, self.v, keys, scale=scale, **extras)

    def expected(self, window: int | None = None, scale: float = 0.3, **extras) -> torch.Tensor:
        return torch.cat([dense(q, k, v, window=window, scale=scale, **extras) for q, k, v in self.rows]).float()
