"""Who may enter the device now, judged by slots.

`Reserve` promises every sequence its final length and can never overcommit; `Optimistic` counts what is needed
now and relies on pausing. Knows no queue, no rows and no steps.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Protocol

from actorllm.cache.sizing import GroupSize
from actorllm.context import Context
from actorllm.errors import InvalidRequest
from actorllm.scheduling.request import Request, Sequence
from actorllm.scheduling.residency import Grant, Residents


class Admission(Protocol):
    """Judges one candidate at a time. `may_pause`: those inside may run short of slots."""

    may_pause: ClassVar[bool]

    def __init__(self, residents: Residents, max_step_tokens: int) -> None: ...

    def check(self, request: Request) -> None:
        """Raises `InvalidRequest` for a request that could never be admitted."""
        ...

    def fits(self, sequence: Sequence, grant: Grant) -> bool:
        """Whether the sequence (with the siblings in its grant) may enter now."""
        ...


class Reserve:
    """Admits a sequence when the final lengths of all that run, and its own, fit together.

    The sum is an upper bound whatever the pace at which sequences grow. LightLLM's peak formula, max over k of
    (b_k * k + a_1 + ... + a_k), is tighter, but it assumes that all sequences gain a token in every step, which chunked
    prefill, budgets and depth 2 break; used here it could overcommit.
    """

    may_pause: ClassVar[bool] = False

    def __init__(self, residents: Residents, max_step_tokens: int) -> None:
        self._residents = residents
        self._max_step_tokens = max_step_tokens

    def check(self, request: Request) -> None:
        grant = grant_for(request.sequences[0])
        for group in self._residents.groups:
            _check_need(request, grant.need(group, self._max_step_tokens), group)

    def fits(self, sequence: Sequence, grant: Grant) -> bool:
        grants = [grant, *self._residents.grants()]
        return all(
            sum(other.need(group, self._max_step_tokens) for other in grants) <= group.num_slots
            for group in self._residents.groups
        )


class Optimistic:
    """Admits a sequence when its known ids fit beside what the running ones still have to prefill and their
    next tokens. An empty device takes anyone: `check` has seen that each sequence fits alone."""

    may_pause: ClassVar[bool] = True

    def __init__(self, residents: Residents, max_step_tokens: int) -> None:
        self._residents = residents
        self._max_step_tokens = max_step_tokens

    def check(self, request: Request) -> None:
        for group in self._residents.groups:
            need = group.need(request.prompt_len + request.own_len, self._max_step_tokens)
            _check_need(request, need, group)

    def fits(self, sequence: Sequence, grant: Grant) -> bool:
        if not len(self._residents):
            return True
        lengths = [sequence.length]
        num_next = grant.num_live
        for stay in self._residents.running:
            lengths.append(max(0, stay.target - stay.num_planned))
            num_next += 1 + len(stay.grant.spare_rows)
        return all(
            sum(group.need(length, self._max_step_tokens) for length in lengths) + num_next <= pool.num_free
            for group, pool in zip(self._residents.groups, self._residents.pools, strict=True)
        )


ADMISSIONS: Mapping[str, type[Admission]] = MappingProxyType({"reserve": Reserve, "optimistic": Optimistic})


def grant_for(sequence: Sequence) -> Grant:
    """What the sequence asks for: with its siblings while they share the prompt, otherwise for itself."""
    request = sequence.request
    num_live = 1 if request.is_forked or request.max_tokens <= 0 else request.params.n
    return Grant(num_live=num_live, shared_len=request.prompt_len, own_len=request.own_len)


def check_context(request: Request, context: Context) -> None:
    """Raises `PromptTooLong` unless the prompt leaves room for a token and for `max_tokens`, `InvalidRequest` for an empty
    prompt and for more `min_tokens` than there may be."""
    if not request.prompt_len:
        raise InvalidRequest("the prompt has no tokens; send at least one", param="prompt")
    context.for_prompts.check(request.prompt_len)
    context.check_output(request.prompt_len, request.max_tokens)
    if request.params.min_tokens > request.max_tokens:
        raise InvalidRequest(
            f"min_tokens is {request.params.min_tokens}, but at most {request.max_tokens} tokens can be generated: lower "
            "min_tokens, or raise max_tokens where the context has room for it",
            param="min_tokens",
        )


def check_choices(request: Request, max_running: int) -> None:
    """Raises `InvalidRequest` for more choices than there are rows."""
    if request.params.n > max_running:
        raise InvalidRequest(
            f"n is {request.params.n}, but at most {max_running} choices can run at once: lower n, or serve with a larger max_running",
            param="n",
        )


def _check_need(request: Request, need: int, group: GroupSize) -> None:
    if need > group.num_slots:
        raise InvalidRequest(
            f"the request may need {need} token slots of KV memory (prompt {request.prompt_len}, max_tokens "
            f"{request.max_tokens}, n {request.params.n}), but cache group {group.name!r} has {group.num_slots}: "
            "shorten the prompt, lower max_tokens or n, or serve with a larger --kv-memory",
            param="max_tokens" if request.prompt_len <= group.num_slots else "prompt",
        )
