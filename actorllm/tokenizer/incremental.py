"""Ids to text, one id at a time: the pieces join exactly to the one-shot decoding.

**The one-shot decoding** of output ids is `Tokenizer.decode(ids)` where nothing is shown of the prompt (no prompt, or
special tokens only). After a prompt that shows text it is the same, except that the output continues a text rather than
beginning one: a leading space that the library drops at the very beginning (SentencePiece's "▁") is kept, as
`decode(prompt + ids)` keeps it. Bytes do not join over the border: a character left incomplete by the prompt stays
incomplete.

Text is held back as long as a later id could change it: an incomplete UTF-8 character in byte-level tokenizers;
with byte fallback the whole run of byte tokens, because one invalid byte anywhere in the run makes the library replace
all of it. `flush` gives the rest. Every id costs its own length, whatever came before.

Knows neither requests nor stop strings. (The library's own `DecodeStream` is not used: it fails on byte-fallback
sequences that are not UTF-8 and keeps an unflushed tail.)
"""

import codecs
from collections.abc import Sequence

from actorllm.tokenizer.load import Tokenizer

WINDOW_LEN = 32
"""Tokens that may wait, for an unknown kind of decoder, until their text settles."""

PREFIX_LEN = 8
"""Tokens decoded again before them, to give the first of them its place in a text."""


class IncrementalDecoder:
    """`push` each output id, then `flush` once; the results join to the one-shot decoding (see the module).

    `prompt_ids` say only whether the output continues a text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        pieces = tokenizer.pieces
        self._pieces = pieces
        self._skip_special_tokens = skip_special_tokens
        self._is_first = not any(map(self._is_shown, prompt_ids))
        self._strips_space = pieces.strips_space and self._is_first
        self._bytes = _LossyBytes()
        self._run = bytearray()
        self._window = None
        if pieces.kind == "window":
            prompt_tail = [token_id for token_id in prompt_ids[-PREFIX_LEN:] if self._is_shown(token_id)]
            self._window = _Window(tokenizer, prompt_tail, skip_special_tokens=skip_special_tokens)

    def push(self, token_id: int) -> str:
        """The text that is certain now that `token_id` arrived; often "" and never half a character."""
        if not self._is_shown(token_id):
            return ""
        if self._window is not None:
            return self._window.push(token_id)
        piece = self._pieces.piece(token_id, is_first=self._is_first)
        self._is_first = False
        if self._pieces.kind == "bytes":
            assert isinstance(piece, bytes)
            return self._bytes.push(piece)
        if isinstance(piece, bytes):
            self._run += piece
            return ""
        return self._begin(self._end_run() + piece if self._run else piece)

    def flush(self) -> str:
        """The text that was held back; no id follows."""
        if self._window is not None:
            return self._window.flush()
        return self._bytes.flush() + self._begin(self._end_run())

    def _is_shown(self, token_id: int) -> bool:
        return self._pieces.is_shown(token_id, skip_special_tokens=self._skip_special_tokens)

    def _end_run(self) -> str:
        """The run of byte tokens as the library shows it: UTF-8 as a whole, or one U+FFFD per byte."""
        run, self._run = self._run, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(run)

    def _begin(self, text: str) -> str:
        """Drop the one leading space of the whole text, where the library does."""
        if self._strips_space and text:
            self._strips_space = False
            return text.removeprefix(" ")
        return text


class _LossyBytes:
    """UTF-8 with invalid parts replaced: the `codecs` decoder replaces the very same parts as Rust's
    `from_utf8_lossy` (each maximal part of a broken character becomes one U+FFFD)."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def flush(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class _Window:
    """For decoders that `pieces` cannot take apart: decode a few tokens twice, with and without the new ones, and show
    the difference once it only grew. Exact wherever a token's text depends on few neighbours; what was shown is
    never taken back."""

    def __init__(self, tokenizer: Tokenizer, prompt_tail: list[int], *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._prefix_ids = prompt_tail
        self._prefix_text = self._decode(prompt_tail)
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        self._waiting.append(token_id)
        text = self._decode(self._prefix_ids + self._waiting)
        is_settled = text.startswith(self._prefix_text) and not text.endswith("\N{REPLACEMENT CHARACTER}")
        if not is_settled and len(self._waiting) < WINDOW_LEN:
            return ""
        return self._show(text)

    def flush(self) -> str:
        return self._show(self._decode(self._prefix_ids + self._waiting))

    def _show(self, text: str) -> str:
        shown = text[len(self._prefix_text) :]
        self._prefix_ids = (self._prefix_ids + self._waiting)[-PREFIX_LEN:]
        self._prefix_text = self._decode(self._prefix_ids)
        self._waiting = []
        return shown

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
