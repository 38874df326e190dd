"""Compares the Triton kernels once with their references, on the GPU that they will run on.

A kernel may compile and still be wrong there: another GPU, driver or version of Triton than it was tested with. Every operator
has forms, each with a verdict of its own: one that fails is not used, its reference is, with a warning that names both. The check
waits for the GPU, so it belongs before the first step: `failing` settles all operators then, and attention's for the heads that
will be served, at the sizes that will be, which compiles what the first steps launch. What it was not told of is checked when it
is first used. What is compared is `checks`' to know, how close it has to be `comparison`'s.
"""

import functools
import logging
from collections.abc import Collection, Mapping

import torch

from actorllm_kernels.backends import USUAL_SIZES, Form, Heads, Sizes
from actorllm_kernels.checks import CHECKS
from actorllm_kernels.comparison import compare

logger = logging.getLogger(__name__)


@functools.cache
def verdicts(device: torch.device) -> dict[tuple[str, torch.dtype, Form], dict[Sizes | None, bool]]:
    """What each comparison on the device has found out, by the sizes that it was made at (None: the operator has none)."""
    return {}


def is_right(operator: str, device: torch.device, dtype: torch.dtype, form: Form, sizes: Sizes | None = None) -> bool:
    """Whether the operator's kernels run on the device and give what the reference gives for such a `dtype`: found out once, and
    once more for each `sizes` that a model is served with."""
    found = verdicts(device).setdefault((operator, dtype, form), {})
    if not found or (sizes is not None and all(found.values())):
        asked = (sizes or USUAL_SIZES) if CHECKS[operator].is_of_sizes else None
        if asked not in found:
            found[asked] = compared(operator, device, dtype, form, asked)
    return all(found.values())


def compared(operator: str, device: torch.device, dtype: torch.dtype, form: Form, sizes: Sizes | None) -> bool:
    """Whether the kernels are right, at `sizes` where the operator is compared at some."""
    what = f"the Triton kernels of {operator} ({form}, {dtype})"
    check = CHECKS[operator]
    allowed = check.tolerance(dtype, form)
    try:
        for name, got, expected in check.compare(device, dtype, form, **({"sizes": sizes} if check.is_of_sizes else {})):
            _, failure = compare(got, expected, allowed)
            if failure:
                said = "%s are wrong on %s (%s: %s); their slower reference runs instead"
                logger.warning(said, what, device, name, failure)
                return False
    except Exception as error:  # boundary: whatever a compiler or driver raises, there is a reference
        logger.warning("%s do not run on %s, their slower reference does: %r", what, device, error)
        return False
    return True


def failing(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    served: Mapping[str, Collection[Heads]] | None = None,
    sizes: Sizes = USUAL_SIZES,
) -> list[tuple[str, Form]]:
    """The operators and forms whose kernels are not used on this device, after all have been checked for activations of `dtype`
    at the `sizes` that will be served: attention's for the heads that will be `served`, by operator (one that is not among them
    is not served), or for usual ones."""
    found: list[tuple[str, Form]] = []
    for operator, check in CHECKS.items():
        forms = served.get(operator, ()) if served is not None and check.is_of_heads else check.forms
        found += [(operator, form) for form in forms if not is_right(operator, device, check.dtype or dtype, form, sizes)]
    return found
