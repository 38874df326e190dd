"""Triton decides when it is imported whether kernels are compiled or interpreted; without a GPU they are interpreted."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """The test finds out anew which kernels are right, and so does whoever comes after it."""
    from actorllm_kernels import self_check  # imports Triton, which has to be told first how kernels run

    self_check.verdicts.cache_clear()
    yield
    self_check.verdicts.cache_clear()
