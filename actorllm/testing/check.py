"""One check: a function that raises what is wrong, and the line of a report that becomes of it. Knows no model's parts.

Legend: T tokens, V vocabulary.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from actorllm.errors import ActorLLMError
from actorllm.models.contract import CausalLM

TOLERANCE = 1e-4
"""Largest difference of logits, as a share of their standard deviation."""


class Case(Protocol):
    """What a check is made with."""

    model_class: type[CausalLM]


CaseT = TypeVar("CaseT", bound=Case)


class CheckFailed(AssertionError):
    """A conformance check found a fault; the message says which."""


class NotCompared(Exception):
    """There is nothing to compare with; the message says why."""


@dataclass(frozen=True)
class CheckResult:
    """One line of a report: what the check is about, what it looked at, and the `reason` if it failed, or the one for which it
    could not be made (`skipped`)."""

    name: str
    about: str
    seen: str = ""
    reason: str = ""
    skipped: str = ""


def run_check(check: Callable[[CaseT], str], case: CaseT) -> CheckResult:
    """One check's line of the report."""
    name = check.__name__.removeprefix("check_")
    about = (check.__doc__ or name).splitlines()[0]
    try:
        return CheckResult(name, about, seen=check(case))
    except NotCompared as error:
        return CheckResult(name, about, skipped=str(error))
    except (CheckFailed, ActorLLMError) as error:
        return CheckResult(name, about, reason=str(error))
    except Exception as error:  # boundary: plugin load
        return CheckResult(name, about, reason=f"raised {type(error).__name__}: {error}{_place(error, case.model_class)}")


def _place(error: Exception, model_class: type[CausalLM]) -> str:
    """Where in the plugin's own package an exception came up; empty if nowhere."""
    package = model_class.__module__.split(".")[0]
    lines = [
        f" ({Path(frame.f_code.co_filename).name}, line {line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).split(".")[0] == package
    ]
    return lines[-1] if lines else ""


def expect_equal(got: Tensor, wanted: Tensor, fault: str) -> str:
    """Compare logits [T, V] up to rounding and return their shape; NaN is a fault too."""
    if got.shape != wanted.shape:
        raise CheckFailed(f"{fault} (shape {list(got.shape)} instead of {list(wanted.shape)})")
    limit = TOLERANCE * float(wanted.std())
    worst = float((got - wanted).abs().max())
    if not worst <= limit:
        raise CheckFailed(f"{fault} (by up to {worst:.3g}, allowed is {limit:.3g}; shape {list(wanted.shape)})")
    return shape_text(wanted)


def shape_text(logits: Tensor) -> str:
    """`logits [T, V]` for a report."""
    return f"logits {list(logits.shape)}"
