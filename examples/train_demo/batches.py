"""Batches of generated conversations: batch number n of a seed is always the same, so that training can be resumed.

Every conversation has a row of its own, as it has when the model is used. Rows of about one length form a part of the batch, so
that little is padded. Shapes: B rows, T tokens.
"""

from collections.abc import Sequence
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.train_demo.conversation import conversation
from examples.train_demo.vocabulary import END_ID, encode

IGNORED = -100
"""A target that does not count."""

NUM_PARTS = 6

Row = tuple[list[int], list[int]]
"""Ids, and for each the next one if that is a token of an answer, or `IGNORED`."""


def batch(tokenizer: Tokenizer, number: int, *, seed: int, num_tokens: int, context_len: int) -> list[tuple[Tensor, Tensor]]:
    """Parts (ids_BT, targets_BT) with together about `num_tokens` ids."""
    rng = Random(f"{seed} {number}")
    rows: list[Row] = []
    while sum(len(ids) for ids, _ in rows) < num_tokens:
        ids, is_learned = encode(tokenizer, conversation(rng))
        targets = [token if counts else IGNORED for token, counts in zip(ids, is_learned, strict=True)]
        rows.append((ids[:-1][:context_len], targets[1:][:context_len]))
    return [padded(part) for part in parted(sorted(rows, key=lambda row: len(row[0])))]


def parted(rows: Sequence[Row]) -> list[list[Row]]:
    """At most `NUM_PARTS` parts with about as many ids each; the order stays."""
    total, before = sum(len(ids) for ids, _ in rows), 0
    parts: list[list[Row]] = [[] for _ in range(NUM_PARTS)]
    for row in rows:
        parts[before * NUM_PARTS // total].append(row)
        before += len(row[0])
    return [part for part in parts if part]


def padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Rows as tensors; what is padded is no target, and being last it is seen by nothing that is."""
    length = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [END_ID] * (length - len(ids)) for ids, _ in rows])
    targets_BT = torch.tensor([targets + [IGNORED] * (length - len(targets)) for _, targets in rows])
    return ids_BT, targets_BT
