"""Reads tiktoken's lists of ranked byte strings (*.tiktoken, GLM-4's tokenizer.model) into the `tokenizers` library.

A line is a token's bytes in base64 and its rank, which is its id; tokens merge whenever their bytes join to a token, lowest rank
first. Where words end is not in the file but in the tokenizer's class, and so are some special tokens. Knows nothing of prompts.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from actorllm.errors import TokenizerError
from actorllm.tokenizer.pieces import byte_level_alphabet

QWEN_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Qwen splits text into words: OpenAI's cl100k_base with digits one by one."""

CL100K_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
"""Special tokens of Qwen 1, which its code puts behind the list."""

GLM4_PREFIX = ("[gMASK]", "<sop>")
"""What GLM-4 puts before a text; tokenizer_config.json lists the tokens."""

LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,9})")


def is_tiktoken(path: Path) -> bool:
    """Whether the file is a list of ranked tokens, by its name or its first line."""
    try:
        with path.open("rb") as file:
            return path.suffix == ".tiktoken" or LINE.fullmatch(file.readline(4096).rstrip(b"\r\n")) is not None
    except OSError as error:
        raise TokenizerError(f"cannot read {path.name}: {error.strerror}") from error


def read_tiktoken(path: Path, config: Mapping[str, Any], *, added: Mapping[int, AddedToken]) -> tuple[Library, dict[str, Any]]:
    """The library's tokenizer, and the keys of tokenizer_config.json that its class stands for.

    `added` are the special tokens that tokenizer_config.json lists. Raises `TokenizerError`.
    """
    kind = str(config.get("tokenizer_class")).removesuffix("Fast")
    if kind not in ("QWenTokenizer", "ChatGLM4Tokenizer"):
        raise TokenizerError(
            f"{path.name} does not say where words end, and of a {kind} it is not known; save it as tokenizer.json with "
            "transformers' save_pretrained"
        )
    library = Library(_model(read_ranks(path), path.name))
    words = pre_tokenizers.Split(Regex(QWEN_WORDS if kind == "QWenTokenizer" else CL100K_WORDS), behavior="isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    library.decoder = decoders.ByteLevel()
    if kind == "QWenTokenizer":
        library.normalizer = normalizers.NFC()
        library.add_special_tokens(list(QWEN_TOKENS))
        return library, {"eos_token": QWEN_TOKENS[0]}
    ids = {token.content: token_id for token_id, token in added.items()}
    if not ids.keys() >= set(GLM4_PREFIX):
        raise TokenizerError(f"tokenizer_config.json lists no ids of {' and '.join(GLM4_PREFIX)}, with which GLM-4 begins a text")
    library.post_processor = processors.TemplateProcessing(
        single=[*GLM4_PREFIX, "$A"], special_tokens=[(token, ids[token]) for token in GLM4_PREFIX]
    )
    return library, {}


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank. Raises `TokenizerError` naming the line at fault."""
    ranks: dict[bytes, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TokenizerError(f"cannot read {path.name}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        matched = LINE.fullmatch(line)
        try:
            token = base64.b64decode(matched[1], validate=True) if matched else b""
        except ValueError:
            token = b""
        if matched is None or not token:
            raise TokenizerError(f"{path.name}, line {number}: not a token in base64 and its rank; copy the file again")
        ranks[token] = int(matched[2])
    if len(set(ranks.values())) != len(lines) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise TokenizerError(f"{path.name}: a token or rank is there twice, or a single byte is not; copy the file again")
    return ranks


def _model(ranks: Mapping[bytes, int], name: str) -> models.BPE:
    characters = {byte: character for character, byte in byte_level_alphabet().items()}

    def text(token: bytes) -> str:
        return token.decode("latin-1").translate(characters)

    try:
        return models.BPE(
            {text(token): rank for token, rank in ranks.items()}, [(text(left), text(right)) for left, right in _merges(ranks)]
        )
    except Exception as error:  # boundary: the library raises bare Exception for a model that it cannot build
        raise TokenizerError(f"{name} does not make a tokenizer: {error}") from error


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that joins to a token, pairs of lower ranked tokens first."""
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        yield from sorted(
            (pair for pair in halves if ranks.keys() >= set(pair)), key=lambda pair: (ranks[pair[0]], ranks[pair[1]])
        )
