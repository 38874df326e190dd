"""Checks of a plugin with a real checkpoint: its config is read, its tensors fit, and what it computes is finite, the same
in chunks, and the same as transformers'.

Names and shapes are compared before any weight is read. Knows nothing of tokenizers: the prompt is made of random ids.

Legend: T tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from actorllm.execution.model_plan import read_config
from actorllm.models.contract import CausalLM
from actorllm.testing.against_transformers import load_folder, load_reference, no_reference, reference_exists, survey_folder
from actorllm.testing.check import CheckFailed, CheckResult, NotCompared, expect_equal, run_check, shape_text
from actorllm.testing.reference import reference_logits
from actorllm.testing.tiny import logits_in_chunks

NUM_TOKENS = 24


@dataclass
class CheckpointCase:
    """A plugin's class, the folder of a checkpoint, and its config.json."""

    model_class: type[CausalLM]
    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def read(cls, model_class: type[CausalLM], folder: Path) -> Self:
        """Raises `CheckpointError` if there is no config.json that can be read."""
        return cls(model_class, folder, read_config(folder))

    @cached_property
    def parsed(self) -> Any:
        return self.model_class.config_class.from_hf(self.config)

    @cached_property
    def ids(self) -> list[int]:
        """A short random prompt."""
        length = min(NUM_TOKENS, self.parsed.context_len)
        return torch.randint(self.parsed.vocab_size, (length,), generator=torch.Generator().manual_seed(0)).tolist()

    @cached_property
    def model(self) -> CausalLM:
        """The model with its weights, in float32."""
        return load_folder(self.model_class, self.folder)

    @cached_property
    def logits(self) -> Tensor:
        """[T, V] of the prompt in one piece."""
        return logits_in_chunks(self.model, self.ids)


def check_checkpoint_config(case: CheckpointCase) -> str:
    """The checkpoint's config.json is read, every key of it."""
    return f"{len(case.config)} keys: {case.parsed.num_layers} layers, vocabulary {case.parsed.vocab_size}"


def check_checkpoint_tensors(case: CheckpointCase) -> str:
    """Every tensor of the checkpoint has its place and its shape, and none is missing."""
    return survey_folder(case.model_class, case.folder)


def check_checkpoint_logits(case: CheckpointCase) -> str:
    """With the checkpoint's weights the logits are finite, and the same in chunks."""
    if not bool(case.logits.isfinite().all()):
        raise CheckFailed(f"the logits are not finite (shape {list(case.logits.shape)})")
    return expect_equal(logits_in_chunks(case.model, case.ids, sizes=[7, 1, 1]), case.logits, "fed in chunks the logits differ")


def check_checkpoint_transformers(case: CheckpointCase) -> str:
    """With the checkpoint's weights the logits are those of transformers."""
    if not reference_exists(case.config):
        raise NotCompared(no_reference(case.config))
    expect_equal(case.logits, reference_logits(load_reference(case.folder), case.ids), "the logits differ from transformers")
    return shape_text(case.logits)


CHECKS: tuple[Callable[[CheckpointCase], str], ...] = (
    check_checkpoint_config,
    check_checkpoint_tensors,
    check_checkpoint_logits,
    check_checkpoint_transformers,
)


def run_checkpoint_checks(case: CheckpointCase) -> list[CheckResult]:
    """Run every check; a fault of one does not stop the others."""
    return [run_check(check, case) for check in CHECKS]
