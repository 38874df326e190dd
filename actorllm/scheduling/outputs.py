"""What detokenize has not been given yet.

The ledger itself remembers per sequence how much was handed out, so a new outbox over an old ledger loses nothing.
Knows no slots and no steps.
"""

from collections.abc import Iterable

from actorllm.messages import Opened, Outputs, PromptScores, RowOutput, TopLogprobs
from actorllm.scheduling.request import Request, Sequence


class Outbox:
    """Collects sequences and requests with news; `take` makes the message of them."""

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        self._sequences: list[Sequence] = []
        self._scored: list[Request] = []
        for request in requests:
            if request.has_unsent_scores:
                self._scored.append(request)
            self._sequences += [sequence for sequence in request.sequences if sequence.has_news]

    def add(self, sequence: Sequence) -> None:
        """The sequence has new tokens or has ended; adding it twice does no harm."""
        self._sequences.append(sequence)

    def add_scores(self, request: Request) -> None:
        """All logprobs of the request's prompt are there."""
        self._scored.append(request)

    def take(self) -> tuple[Outputs | None, list[Request]]:
        """Everything new, marked as handed out, and the requests whose choices have thereby been told their end."""
        if not self._sequences and not self._scored:
            return None, []
        opened: list[Opened] = []
        ended: list[Request] = []
        prompts = [self._prompt_scores(request, opened) for request in self._scored]
        rows = []
        for sequence in self._sequences:
            if not sequence.has_news:
                continue
            request = sequence.request
            if not request.is_opened_sent:
                opened.append(_opened(request))
            rows.append(_row_output(sequence))
            if sequence.finish is not None:
                ended.append(request)
        self._sequences.clear()
        self._scored.clear()
        if not rows and not prompts:
            return None, ended
        return Outputs(opened=tuple(opened), rows=tuple(rows), prompts=tuple(prompts)), ended

    def _prompt_scores(self, request: Request, opened: list[Opened]) -> PromptScores:
        if not request.is_opened_sent:
            opened.append(_opened(request))
        scores = joined(request.score_parts, width=request.params.prompt_logprobs or 0)
        request.score_parts.clear()
        request.has_unsent_scores = False
        return PromptScores(request.request_id, scores)


def joined(parts: list[TopLogprobs], *, width: int) -> TopLogprobs:
    """Consecutive runs as one; `width` is the width of an empty one."""
    if len(parts) == 1:
        return parts[0]
    assert all(part.width == parts[0].width for part in parts)
    return TopLogprobs(
        width=parts[0].width if parts else width,
        chosen=b"".join(part.chosen for part in parts),
        ids=b"".join(part.ids for part in parts),
        values=b"".join(part.values for part in parts),
    )


def _opened(request: Request) -> Opened:
    request.is_opened_sent = True
    params = request.params
    return Opened(
        request_id=request.request_id,
        prompt_ids=request.prompt_ids.tobytes(),
        n=params.n,
        stop=params.stop,
        min_tokens=params.min_tokens,
        skip_special_tokens=params.skip_special_tokens,
        num_cached=request.num_cached,
    )


def _row_output(sequence: Sequence) -> RowOutput:
    start, ids = sequence.num_sent, sequence.output_ids
    logprobs = None
    if sequence.logprobs:
        logprobs = joined(sequence.logprobs, width=0)
        sequence.logprobs = []
    sequence.num_sent = len(ids)
    sequence.is_finish_sent = sequence.finish is not None
    return RowOutput(
        sequence.request.request_id,
        sequence.choice,
        start,
        ids[start:].tobytes(),
        logprobs,
        sequence.finish,
        sequence.failure,
        sequence.is_stop_token,
    )
