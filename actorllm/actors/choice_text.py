"""The text of one choice as it grows: decoding, stop strings, and numbering of its events."""

from actorllm.messages import Failure, FinishReason, Opened, RowOutput, TokenEvent, TokenLogprob, unpack
from actorllm.tokenizer.incremental import IncrementalDecoder
from actorllm.tokenizer.load import Tokenizer
from actorllm.tokenizer.logprobs import token_logprobs
from actorllm.tokenizer.stop_strings import StopFinder


class ChoiceText:
    """Turns a choice's `RowOutput`s into `TokenEvent`s; closed after its one terminal event.

    Once a stop string is found, `stop_index` is the output index of the token that completed it.
    """

    def __init__(self, tokenizer: Tokenizer, opened: Opened, choice: int) -> None:
        self.is_closed = False
        self.stop_index: int | None = None
        self._tokenizer = tokenizer
        self._request_id = opened.request_id
        self._choice = choice
        self._min_tokens = opened.min_tokens
        self._decoder = IncrementalDecoder(
            tokenizer, list(unpack(opened.prompt_ids)), skip_special_tokens=opened.skip_special_tokens
        )
        self._finder = StopFinder(opened.stop)
        self._num_tokens = 0
        self._num_events = 0

    def push(self, row: RowOutput) -> list[TokenEvent]:
        """The events of new tokens, up to and including the choice's end. Raises where tokens before them did not come."""
        if row.start != self._num_tokens:
            raise RuntimeError(f"token {row.start} came after {self._num_tokens} tokens")
        ids = unpack(row.ids)
        scores = token_logprobs(self._tokenizer, list(ids), row.logprobs) if row.logprobs else None
        events: list[TokenEvent] = []
        for offset, token_id in enumerate(ids):
            is_last = offset == len(ids) - 1
            finish = row.finish if is_last else None
            text = self._text_of(token_id, is_silent=is_last and row.is_stop_token)
            if self._finder.is_found:
                finish, self.stop_index = "stop", self._num_tokens - 1
            elif finish is not None:
                text, finish = self._flushed(text, finish)
            failure = row.failure if finish == row.finish else None
            token_scores = scores[offset] if scores else None
            events.append(self._event(token_id, text, finish=finish, failure=failure, scores=token_scores))
            if finish is not None:
                return events
        if row.finish is not None:
            text, finish = self._flushed("", row.finish)
            events.append(self._event(-1, text, finish=finish, failure=row.failure))
        return events

    def fail(self, failure: Failure) -> TokenEvent:
        """End the choice with an error."""
        return self._event(-1, "", finish="error", failure=failure)

    def _text_of(self, token_id: int, *, is_silent: bool) -> str:
        """What one more token lets be shown; a stop token has no text."""
        self._num_tokens += 1
        piece = "" if is_silent else self._decoder.push(token_id)
        return self._finder.push(piece) if self._num_tokens >= self._min_tokens else piece

    def _flushed(self, text: str, finish: FinishReason) -> tuple[str, FinishReason]:
        """At the end: `text`, and what the decoder and the stop finder held back."""
        text += self._finder.push(self._decoder.flush())
        if self._finder.is_found:
            return text, "stop"
        return text + self._finder.flush(), finish

    def _event(
        self,
        token_id: int,
        text: str,
        *,
        finish: FinishReason | None,
        failure: Failure | None = None,
        scores: tuple[TokenLogprob, tuple[TokenLogprob, ...]] | None = None,
    ) -> TokenEvent:
        self.is_closed = finish is not None
        index, self._num_events = self._num_events, self._num_events + 1
        logprob, top = scores or (None, ())
        return TokenEvent(self._request_id, self._choice, index, token_id, text, logprob, top, finish, failure)
