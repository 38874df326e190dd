"""The detokenize actor: ids to text, stop strings, and the one terminal event of every choice.

What it was told is kept in `Transcripts`, which outlives an incarnation: after a crash the next one replays
them and the streams ignore what they have had. A row that cannot be decoded fails its own request only.
Knows no device and no schedule beyond the urgent messages it sends there.
"""

import logging
from collections.abc import Callable

from actorllm.actors.choice_text import ChoiceText
from actorllm.errors import RequestFailed
from actorllm.messages import (
    Abort,
    Failure,
    Opened,
    Outputs,
    PromptEvent,
    PromptScores,
    RowOutput,
    StopFound,
    TokenEvent,
    TokenEvents,
    unpack,
)
from actorllm.runtime.actor import Actor
from actorllm.tokenizer.load import Tokenizer
from actorllm.tokenizer.logprobs import token_logprobs

logger = logging.getLogger(__name__)


class Transcript:
    """All that was said to detokenize about one open request."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.rows: list[RowOutput] = []
        self.prompt: PromptScores | None = None


class Transcripts:
    """Open requests by id, as ids and parameters only: everything else can be rebuilt from them."""

    def __init__(self) -> None:
        self.open: dict[str, Transcript] = {}
        self.unrecorded: Outputs | None = None

    def record(self) -> None:
        """Remember what is `unrecorded`: a message before anything is made of it, or one that a crash came between."""
        outputs = self.unrecorded
        if outputs is None:
            return
        for opened in outputs.opened:
            self.open[opened.request_id] = Transcript(opened)
        for scores in outputs.prompts:
            if transcript := self.open.get(scores.request_id):
                transcript.prompt = scores
        for row in outputs.rows:
            if transcript := self.open.get(row.request_id):
                transcript.rows.append(row)
        self.unrecorded = None


class DetokenizeActor(Actor[Outputs]):
    """`deliver` hands events to the streams; `tell_schedule` posts `StopFound` and `Abort` there."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        transcripts: Transcripts,
        *,
        deliver: Callable[[TokenEvents], None],
        tell_schedule: Callable[[StopFound | Abort], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._transcripts = transcripts
        self._deliver = deliver
        self._tell_schedule = tell_schedule
        self._texts: dict[str, list[ChoiceText]] = {}

    async def started(self) -> None:
        """Rebuild what an earlier incarnation knew."""
        self._transcripts.record()
        transcripts = list(self._transcripts.open.values())
        self._handle(
            Outputs(
                opened=tuple(transcript.opened for transcript in transcripts),
                rows=tuple(row for transcript in transcripts for row in transcript.rows),
                prompts=tuple(transcript.prompt for transcript in transcripts if transcript.prompt),
            )
        )

    async def receive(self, message: Outputs) -> None:
        self._transcripts.unrecorded = message
        self._transcripts.record()
        self._handle(message)

    def _handle(self, outputs: Outputs) -> None:
        events: list[TokenEvent] = []
        for opened in outputs.opened:
            events.extend(self._open(opened))
        prompts: list[PromptEvent] = []
        for scores in outputs.prompts:
            if self._texts.get(scores.request_id):
                events.extend(self._score(scores, prompts))
        for row in outputs.rows:
            if self._texts.get(row.request_id):
                events.extend(self._row_events(row))
        if events or prompts:
            cached = tuple((opened.request_id, opened.num_cached) for opened in outputs.opened if opened.num_cached)
            self._deliver(TokenEvents(tuple(events), tuple(prompts), cached))
        for request_id in {event.request_id for event in events if event.finish is not None}:
            self._forget_if_closed(request_id)

    def _open(self, opened: Opened) -> list[TokenEvent]:
        request_id, choices = opened.request_id, range(opened.n)
        try:
            self._texts[request_id] = [ChoiceText(self._tokenizer, opened, choice) for choice in choices]
        except Exception as error:  # boundary: a prompt that cannot be decoded fails its own request
            self._texts[request_id] = []
            failure = self._give_up(request_id, error)
            return [TokenEvent(request_id, choice, 0, -1, "", finish="error", failure=failure) for choice in choices]
        return []

    def _score(self, scores: PromptScores, prompts: list[PromptEvent]) -> list[TokenEvent]:
        try:
            prompts.append(self._prompt_event(scores))
        except Exception as error:  # boundary: scores that cannot be decoded fail their own request
            return self._fail_request(scores.request_id, error)
        return []

    def _row_events(self, row: RowOutput) -> list[TokenEvent]:
        text = self._texts[row.request_id][row.choice]
        if text.is_closed:
            return []
        try:
            events = text.push(row)
        except Exception as error:  # boundary: a row that cannot be decoded fails its own request
            return self._fail_request(row.request_id, error)
        if text.stop_index is not None:
            self._tell_schedule(StopFound(row.request_id, row.choice, text.stop_index))
        return events

    def _fail_request(self, request_id: str, error: Exception) -> list[TokenEvent]:
        failure = self._give_up(request_id, error)
        return [text.fail(failure) for text in self._texts[request_id] if not text.is_closed]

    def _give_up(self, request_id: str, error: Exception) -> Failure:
        logger.error("request %s: detokenizing failed", request_id, exc_info=error)
        self._tell_schedule(Abort(request_id))
        return Failure.of(RequestFailed(f"the output could not be turned into text ({type(error).__name__})"))

    def _prompt_event(self, scores: PromptScores) -> PromptEvent:
        prompt_ids = unpack(self._transcripts.open[scores.request_id].opened.prompt_ids)
        entries = token_logprobs(self._tokenizer, list(prompt_ids)[1:], scores.scores)
        return PromptEvent(scores.request_id, (None, *entries))

    def _forget_if_closed(self, request_id: str) -> None:
        texts = self._texts.get(request_id)
        if texts is not None and all(text.is_closed for text in texts):
            del self._texts[request_id]
            del self._transcripts.open[request_id]
