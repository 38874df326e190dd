"""Batches of generated conversations: batch number n of a seed is always the same, so that training can be resumed.

A row holds conversations one after the other, and is cut at its end; the first one always begins at the row's start.
Shapes: B rows, T tokens.
"""

from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.train_demo.conversation import conversation
from examples.train_demo.vocabulary import encode

IGNORED = -100
"""A target that does not count."""

LONG_EVERY, LONG_FACTOR = 12, 4
"""Every 12th batch has rows four times as long: positions far into the context are learned too."""


def batch(tokenizer: Tokenizer, number: int, *, seed: int, num_rows: int, row_len: int) -> tuple[Tensor, Tensor]:
    """(ids_BT, targets_BT); a target is the next token of an answer, or `IGNORED`."""
    rng = Random(f"{seed} {number}")
    if number % LONG_EVERY == LONG_EVERY - 1:
        num_rows, row_len = max(num_rows // LONG_FACTOR, 1), row_len * LONG_FACTOR
    ids_BT = torch.empty(num_rows, row_len, dtype=torch.long)
    targets_BT = torch.empty(num_rows, row_len, dtype=torch.long)
    for row in range(num_rows):
        ids: list[int] = []
        is_learned: list[bool] = []
        while len(ids) <= row_len:
            more_ids, more_learned = encode(tokenizer, conversation(rng))
            ids += more_ids
            is_learned += more_learned
        targets = [token if counts else IGNORED for token, counts in zip(ids, is_learned, strict=True)]
        ids_BT[row] = torch.tensor(ids[:row_len])
        targets_BT[row] = torch.tensor(targets[1 : row_len + 1])
    return ids_BT, targets_BT
