"""The tokenizer of a checkpoint: text to ids, and ids to text.

`Tokenizer.load` reads a Hugging Face directory (`files.py` knows the formats). Whether BOS or EOS is added is what the
checkpoint says: tokenizer.json's post-processor, unless tokenizer_config.json's add_bos_token / add_eos_token says otherwise.
Knows no requests and no model.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from tokenizers import Encoding, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from actorllm.context import TokenLimit
from actorllm.errors import InvalidRequest, TokenizerError
from actorllm.tokenizer.files import NAMED_TOKENS, read_library, read_object, token_content
from actorllm.tokenizer.pieces import Pieces

PROBES = ("a", "0", ".", " ", "\n")
"""Texts of which at least one has tokens in any vocabulary."""

HEAD_CHARACTERS = 8
"""Characters of a text's beginning, for each token that there is room for, that are encoded to see whether there are far too many
tokens: ordinary text has two to six a token."""


class Affixes(Struct, frozen=True):
    """The ids put before and after a text when special tokens are added."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


class Tokenizer:
    """Encodes off the event loop, decodes at once. Immutable after `load`, so it may be shared."""

    def __init__(
        self, library: Library, config: Mapping[str, Any], *, chat_template: Mapping[str, str], template_file: str = ""
    ) -> None:
        self._library = library
        self.special_tokens = {
            name: content for name in NAMED_TOKENS if (content := token_content(config.get(name), name=name)) is not None
        }
        """bos_token, eos_token, ... as text: the variables of a chat template."""
        self.chat_template = dict(chat_template)
        """The chat templates by name; a single one is called "default"; {} without any."""
        self.template_file = template_file
        """The name of the file that they were read from."""
        self.bos_id = self._named_id("bos_token")
        self.eos_id = self._named_id("eos_token")
        self._affixes = self._find_affixes(config)
        self.breaker = "".join(secrets.choice("0123456789") for _ in range(30))
        """A secret string that vanishes when text is encoded: put inside of a special token's text, it keeps that
        text from becoming the token (see `chat_template.py`)."""
        _drop_when_encoding(library, self.breaker)
        self.pieces = Pieces(library)
        self._ids = sorted(library.get_vocab(with_added_tokens=True).values())

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Read the tokenizer of a Hugging Face directory. Raises `TokenizerError` naming the file at fault."""
        config = read_object(directory / "special_tokens_map.json") | {
            name: value for name, value in read_object(directory / "tokenizer_config.json").items() if value is not None
        }
        library, config = read_library(directory, config)
        templates, template_file = _read_chat_templates(directory, config)
        return cls(library, config, chat_template=templates, template_file=template_file)

    # --- text to ids ---

    async def encode(self, text: str, *, add_special_tokens: bool = True, limit: TokenLimit | None = None) -> list[int]:
        """The ids of `text`. With `add_special_tokens`, BOS and EOS as the checkpoint says, and no second BOS where
        the text begins with BOS already. Raises `InvalidRequest` for text that is not Unicode (lone surrogates).

        What is far beyond `limit` is refused by its beginning, and its rest is not encoded: seconds of work on megabytes.
        """
        if limit is not None and len(text) > 2 * HEAD_CHARACTERS * limit.most:
            head = await self._encoding(text[: HEAD_CHARACTERS * limit.most])
            if len(head) > limit.most * 5 // 4:  # how the cut word would go on changes a few tokens, never a fifth of them
                limit.check(len(head), is_part=True)
        encoding = await self._encoding(text)
        if limit is not None:
            limit.check(len(encoding))  # before a Python object is made for each token
        ids = encoding.ids
        if not add_special_tokens:
            return ids
        prefix = self._affixes.prefix
        if prefix and prefix[-1] == self.bos_id and ids[:1] == [self.bos_id]:
            prefix = prefix[:-1]
        return [*prefix, *ids, *self._affixes.suffix]

    async def _encoding(self, text: str) -> Encoding:
        try:
            return await self._library.async_encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest(
                "the text is not valid Unicode: it has half of a surrogate pair; send the whole character", param="prompt"
            ) from error

    def id_of(self, token: str) -> int | None:
        """The id of a token written as in the vocabulary; None for an unknown one."""
        return self._library.token_to_id(token)

    # --- ids to text ---

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`, all at once. Ids that the tokenizer does not define have no text."""
        return self._library.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The token's own bytes: a byte-level token may hold a part of a character. Empty for an unknown id."""
        return self.pieces.data(token_id)

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD where it is a part of a character. Special tokens show their name."""
        return self.token_bytes(token_id).decode(errors="replace")

    # --- the vocabulary ---

    @property
    def vocab_size(self) -> int:
        """The largest id + 1; there may be holes below."""
        return self._ids[-1] + 1 if self._ids else 0

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out of texts."""
        return self.pieces.special_ids

    def special_texts(self) -> tuple[str, ...]:
        """The special tokens as they are written."""
        tokens = self._library.get_added_tokens_decoder().values()
        return tuple(token.content for token in tokens if token.special)

    def invalid_ids(self, model_vocab_size: int) -> list[int]:
        """Ids of the model's (padded) vocabulary that stand for no token: they must never be sampled."""
        return sorted(set(range(model_vocab_size)).difference(self._ids))

    def _named_id(self, name: str) -> int | None:
        """None also for a token that the configuration names but the vocabulary does not have."""
        content = self.special_tokens.get(name)
        return None if content is None else self._library.token_to_id(content)

    def _find_affixes(self, config: Mapping[str, Any]) -> Affixes:
        affixes = _post_processor_affixes(self._library)
        prefix, suffix = list(affixes.prefix), list(affixes.suffix)
        if config.get("add_bos_token") is True and self.bos_id is not None and self.bos_id not in prefix:
            prefix.insert(0, self.bos_id)
        if config.get("add_bos_token") is False:
            prefix = [token_id for token_id in prefix if token_id != self.bos_id]
        if config.get("add_eos_token") is True and self.eos_id is not None and self.eos_id not in suffix:
            suffix.append(self.eos_id)
        if config.get("add_eos_token") is False:
            suffix = [token_id for token_id in suffix if token_id != self.eos_id]
        return Affixes(tuple(prefix), tuple(suffix))


def _drop_when_encoding(library: Library, breaker: str) -> None:
    """Make `breaker` vanish from texts, later than the library looks for special tokens.

    Dropped by the normalizer it leaves no trace in how the text around it is split. Special tokens marked `"normalized": true`
    (Llama 1 and 2) are looked for after that, so there it has to last until words are split, and splits them.
    """
    if any(token.special and token.normalized for token in library.get_added_tokens_decoder().values()):
        vanish = pre_tokenizers.Split(breaker, behavior="removed")
        words = library.pre_tokenizer
        library.pre_tokenizer = vanish if words is None else pre_tokenizers.Sequence([vanish, words])
    else:
        replace = normalizers.Replace(breaker, "")
        normalizer = library.normalizer
        library.normalizer = replace if normalizer is None else normalizers.Sequence([replace, normalizer])


def _post_processor_affixes(library: Library) -> Affixes:
    """What the library's post-processor puts around a text, found by trying."""
    for probe in PROBES:
        bare = library.encode(probe, add_special_tokens=False).ids
        full = library.encode(probe, add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1) if bare else ():
            if full[start : start + len(bare)] == bare:
                return Affixes(tuple(full[:start]), tuple(full[start + len(bare) :]))
    return Affixes(tuple(library.encode("", add_special_tokens=True).ids), ())


def _read_chat_templates(directory: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """By name, and the file that they are in: chat_template.jinja before chat_template.json before tokenizer_config.json."""
    template: Any = config.get("chat_template")
    file_name = "tokenizer_config.json"
    if (own := read_object(directory / "chat_template.json").get("chat_template")) is not None:
        template, file_name = own, "chat_template.json"
    path = directory / "chat_template.jinja"
    if path.exists():
        try:
            template, file_name = path.read_text(encoding="utf-8"), path.name
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"cannot read {path.name}: {error}") from error
    if template is None:
        return {}, file_name
    if isinstance(template, str):
        return {"default": template}, file_name
    try:
        named = {entry["name"]: entry["template"] for entry in template}
    except (TypeError, KeyError) as error:
        raise TokenizerError(f"{file_name}: chat_template must be a string or a list of named templates") from error
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise TokenizerError(f"{file_name}: a chat template's name and text must be strings")
    return named, file_name
