"""From a budget of bytes to token slots per cache group.

Knows bytes and counts; what a token's bytes are made of is the caller's business.
"""

from collections.abc import Iterable

from msgspec import Struct

from actorllm.errors import NotEnoughMemory


class GroupSize(Struct, frozen=True):
    """One cache group as the scheduler sees it: `num_slots` tokens fit; with a `window` W, only a sequence's
    last W tokens are ever read (None: all of them). With `is_state` it holds one state for each device row, and no slots."""

    name: str
    num_slots: int
    window: int | None = None
    is_state: bool = False

    def need(self, length: int, max_step_tokens: int) -> int:
        """Slots that one sequence of `length` tokens takes at most at any time, see `slots_needed`."""
        return slots_needed(length, self.window, max_step_tokens)


def slots_needed(length: int, window: int | None, max_step_tokens: int) -> int:
    """Slots that one sequence of `length` tokens takes at most at any time.

    Behind a window slots are given back once the steps that read them are done, so beside the window only the
    tokens of steps under way take room, and those are at most `max_step_tokens`.
    """
    return length if window is None else min(length, window + max_step_tokens)


def slots_for_budget(
    num_bytes: int,
    groups: Iterable[tuple[str, int | None, int]],
    *,
    context: int,
    max_step_tokens: int,
    state_bytes: int = 0,
) -> tuple[GroupSize, ...]:
    """Split `num_bytes` of KV memory, less the `state_bytes` that all rows' states take, among `groups` of (name, window, bytes
    per token).

    Groups share in proportion to what one sequence of `context` tokens needs in each, so that they fill up
    together. Raises `NotEnoughMemory` if one such sequence does not fit.
    """
    groups = tuple(groups)
    needs = [slots_needed(context, window, max_step_tokens) for _, window, _ in groups]
    needed_bytes = sum(need * token_bytes for need, (_, _, token_bytes) in zip(needs, groups, strict=True))
    if num_bytes < needed_bytes + state_bytes:
        raise NotEnoughMemory(
            f"the KV cache of one sequence of {context} tokens needs {needed_bytes + state_bytes} bytes, but only {num_bytes} "
            f"bytes are given: raise --kv-memory to at least {needed_bytes + state_bytes}, or lower --context below {context}",
            param="kv_memory",
        )
    return tuple(
        GroupSize(name, (num_bytes - state_bytes) * need // needed_bytes, window)
        for need, (name, window, _) in zip(needs, groups, strict=True)
    )
