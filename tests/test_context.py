"""What is said to who asks for more tokens than the context has."""

import pytest

from actorllm.context import Context
from actorllm.errors import PromptTooLong


@pytest.mark.parametrize("check", [lambda context: context.for_prompts.check(9), lambda context: context.check_output(5, 4)])
def test_a_larger_context_is_recommended_where_the_model_has_one(check) -> None:
    with pytest.raises(PromptTooLong, match=r"with a larger --context \(this model goes up to 16\)"):
        check(Context(8, largest=16))
    with pytest.raises(PromptTooLong, match=r"this one was made for 8$") as caught:
        check(Context(8, largest=8))
    assert "--context" not in str(caught.value)


def test_what_fits_is_not_refused() -> None:
    Context(8, largest=8).for_prompts.check(7)
    Context(8, largest=8).check_output(5, 3)
