"""What each token adds to the text: classifies a tokenizer's decoder and gives a token's bytes or text.

The `tokenizers` library decodes whole lists only. Its decoders are chains of a few known stages; the chains that
real checkpoints use are taken apart here so that text can be built token by token, exactly as the library would:

    bytes     ByteLevel: a token is bytes; the whole is UTF-8, invalid parts replaced as Unicode recommends
    fallback  ByteFallback: a token is text, or one byte (`<0xHH>`); a run of byte tokens that is not UTF-8 as a
              whole becomes one U+FFFD per byte, its valid characters included
    text      Metaspace, WordPiece, BERT-like and no decoder: a token is text; only the first one differs
    window    any other chain: unknown here, see `incremental.py`

Knows tokens one at a time; nothing of their order beyond "first or not".
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

PieceKind = Literal["bytes", "fallback", "text", "window"]

BYTE_TOKEN = re.compile(r"<0x([+]?[0-9A-Fa-f]|[0-9A-Fa-f]{2})>")
"""`<0xHH>`, as the library parses it: six bytes long (a sign and one digit pass its number parser too)."""


def byte_level_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies, reversed.

    Source: GPT-2's `bytes_to_unicode`.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Pieces:
    """The pieces of one tokenizer. `strips_space`: one leading space of the whole text is dropped."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._alphabet = byte_level_alphabet()
        self._special_ids = frozenset(token_id for token_id, token in library.get_added_tokens_decoder().items() if token.special)
        stages = _stages(library)
        self.kind, self.strips_space, token_stages = _classify(stages)
        self._stage_decoder = _token_decoder(token_stages)
        self._is_joined_by_spaces = not stages
        self._cache: dict[int, bytes | str] = {}

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that `skip_special_tokens` skips."""
        return self._special_ids

    def is_shown(self, token_id: int, *, skip_special_tokens: bool) -> bool:
        """Whether the library's decoding looks at this id at all."""
        if skip_special_tokens and token_id in self._special_ids:
            return False
        return self._library.id_to_token(token_id) is not None

    def piece(self, token_id: int, *, is_first: bool = False) -> bytes | str:
        """The token's bytes (byte-level and byte tokens) or text. Unknown ids give ""."""
        if is_first and self.kind == "text":
            return self._compute(token_id, is_first=True)
        known = self._cache.get(token_id)
        if known is None:
            known = self._cache[token_id] = self._compute(token_id, is_first=False)
        return known

    def data(self, token_id: int) -> bytes:
        """The token's own bytes, as it has them in the middle of a text."""
        piece = self.piece(token_id)
        return piece if isinstance(piece, bytes) else piece.encode()

    def _compute(self, token_id: int, *, is_first: bool) -> bytes | str:
        token = self._library.id_to_token(token_id)
        if token is None:
            return ""
        if self.kind == "bytes":
            # The library takes a token with any other character (an added token) as plain text.
            is_bytes = all(character in self._alphabet for character in token)
            return bytes(self._alphabet[character] for character in token) if is_bytes else token.encode()
        if self.kind == "window":
            return self._library.decode([token_id], skip_special_tokens=False)
        if self._is_joined_by_spaces:
            return token if is_first else " " + token
        if self.kind == "text":
            return self._positioned(token, is_first=is_first)
        text = self._stage_decoder.decode([token]) if self._stage_decoder else token
        matched = BYTE_TOKEN.fullmatch(text)
        return bytes([int(matched[1], 16)]) if matched else text

    def _positioned(self, token: str, *, is_first: bool) -> str:
        """The token's text from a decoder that treats the first token differently: decode it after an empty one."""
        assert self._stage_decoder is not None
        return self._stage_decoder.decode([token] if is_first else ["", token])


def _stages(library: Library) -> list[dict[str, Any]]:
    """The decoder's stages as tokenizer.json writes them; nested sequences flattened."""
    shell = Library(models.BPE())  # an empty tokenizer, so that writing it out costs nothing
    shell.decoder = library.decoder
    pending = [json.loads(shell.to_str())["decoder"]]
    stages: list[dict[str, Any]] = []
    while pending:
        stage = pending.pop(0)
        if stage is None:
            continue
        if stage["type"] == "Sequence":
            pending = [*stage["decoders"], *pending]
        else:
            stages.append(stage)
    return stages


def _classify(stages: Sequence[Mapping[str, Any]]) -> tuple[PieceKind, bool, list[Mapping[str, Any]]]:
    """(kind, strips_space, the stages that work on one token)."""
    names = [stage["type"] for stage in stages]
    if names == ["ByteLevel"]:
        return "bytes", False, []
    if names in ([], ["Metaspace"], ["WordPiece"]):
        return "text", False, list(stages)
    strips_space = names[-2:] == ["Fuse", "Strip"] and _is_one_leading_space(stages[-1])
    if strips_space:
        names.pop()
    if names[-1] == "Fuse":
        names.pop()
    if names and names.pop() == "ByteFallback" and set(names) <= {"Replace"}:
        return "fallback", strips_space, list(stages[: len(names)])
    return "window", False, []


def _is_one_leading_space(stage: Mapping[str, Any]) -> bool:
    return stage["content"] == " " and stage["start"] == 1 and stage["stop"] == 0


def _token_decoder(stages: Sequence[Mapping[str, Any]]) -> decoders.Decoder | None:
    """The library's own decoder for the stages that work on one token; None without any."""
    if not stages:
        return None
    shell = json.loads(Library(models.BPE()).to_str())
    shell["decoder"] = {"type": "Sequence", "decoders": list(stages)}
    return Library.from_str(json.dumps(shell)).decoder
