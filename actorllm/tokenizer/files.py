"""Reads the tokenizer's files of a Hugging Face directory into the `tokenizers` library.

tokenizer.json as it is, or GPT-2's pair vocab.json + merges.txt with the pre-tokenizer that the tokenizer's class stands for;
added tokens that only tokenizer_config.json lists are added at the ids it gives them. Every failure is a `TokenizerError` that
names the file. Knows nothing of prompts or BOS.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from actorllm.errors import TokenizerError

QWEN2_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Qwen2 splits text into words; source: `transformers`' Qwen2Tokenizer."""

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GPT2_CLASSES = ("GPT2Tokenizer", "CodeGenTokenizer")
QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen3Tokenizer")
GPT2_END = "<|endoftext|>"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; {} where there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TokenizerError(f"cannot read {path.name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path.name} is not JSON: {error}; copy the file again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path.name} must hold a JSON object")
    return value


def read_library(directory: Path, config: Mapping[str, Any]) -> Library:
    """The library's tokenizer of `directory`; `config` is its tokenizer_config.json."""
    if (directory / "tokenizer.json").exists():
        library = _from_tokenizer_json(directory / "tokenizer.json")
    elif (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        library = _from_vocab_and_merges(directory, config)
    else:
        raise TokenizerError(_nothing_readable(directory))
    _add_tokens(library, directory, config)
    library.no_truncation()  # a checkpoint may carry the settings of its training
    library.no_padding()
    return library


def token_content(value: Any, *, name: str) -> str | None:
    """A special token's text; configurations write it as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"tokenizer_config.json: {name} must be a string, not {type(value).__name__}")
    return value or None


def _from_tokenizer_json(path: Path) -> Library:
    try:
        return Library.from_file(str(path))
    except Exception as error:  # boundary: the library raises bare Exception for a file that it cannot read
        raise TokenizerError(f"tokenizer.json is not a tokenizer that can be read: {error}") from error


def _from_vocab_and_merges(directory: Path, config: Mapping[str, Any]) -> Library:
    kind = str(config.get("tokenizer_class") or _class_by_model(directory)).removesuffix("Fast")
    if kind not in GPT2_CLASSES + QWEN2_CLASSES:
        raise TokenizerError(
            f"vocab.json and merges.txt of a {kind} cannot be read; save it as tokenizer.json with transformers' save_pretrained"
        )
    read_object(directory / "vocab.json")  # names the file, should it be corrupt
    try:
        model = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    except Exception as error:  # boundary: the library raises bare Exception for files that it cannot read
        raise TokenizerError(f"vocab.json and merges.txt do not make a tokenizer: {error}") from error
    library = Library(model)
    library.decoder = decoders.ByteLevel()
    has_prefix_space = bool(config.get("add_prefix_space", False))
    if kind in QWEN2_CLASSES:
        library.normalizer = normalizers.NFC()
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=has_prefix_space, use_regex=False),
            ]
        )
    else:
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix_space)
    if library.token_to_id(GPT2_END) is not None:
        library.add_special_tokens([GPT2_END])
    return library


def _class_by_model(directory: Path) -> str:
    """GPT-2's pair of files names no class of its own: config.json's model decides, then GPT-2."""
    model_type = str(read_object(directory / "config.json").get("model_type", ""))
    return "Qwen2Tokenizer" if model_type.startswith(("qwen2", "qwen3")) else "GPT2Tokenizer"


def _nothing_readable(directory: Path) -> str:
    others = [path.name for pattern in ("*.model", "*.tiktoken") for path in sorted(directory.glob(pattern))]
    if others:
        return (
            f"the tokenizer is only there as {', '.join(others)}, and this version reads tokenizer.json or vocab.json + "
            "merges.txt (a later version reads SentencePiece); save it as tokenizer.json with transformers' save_pretrained"
        )
    return "there is no tokenizer.json (or vocab.json + merges.txt); download the checkpoint's tokenizer files too"


def _add_tokens(library: Library, directory: Path, config: Mapping[str, Any]) -> None:
    """Add the tokens that the configuration lists and the library does not have as added tokens, at their ids."""
    listed = config.get("added_tokens_decoder") or {}
    older = read_object(directory / "added_tokens.json")
    try:
        wanted = {int(token_id): _added_token(token) for token_id, token in listed.items()}
        for content, token_id in older.items():
            wanted.setdefault(int(token_id), AddedToken(content, normalized=False, special=False))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise TokenizerError(f"tokenizer_config.json: added_tokens_decoder is malformed: {error}") from error
    present = {token.content for token in library.get_added_tokens_decoder().values()}
    for token_id, token in sorted(wanted.items()):
        if token.content in present:
            continue
        library.add_tokens([token])
        found = library.token_to_id(token.content)
        if found != token_id:
            raise TokenizerError(
                f"tokenizer_config.json puts {token.content!r} at id {token_id}, the vocabulary at {found}: "
                "the files do not belong together"
            )

    named = {token_content(config.get(name), name=name) for name in NAMED_TOKENS} - present
    library.add_special_tokens([token for token in named if token is not None and library.token_to_id(token) is not None])


def _added_token(token: Mapping[str, Any]) -> AddedToken:
    flags = {name: bool(token[name]) for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if name in token}
    return AddedToken(token["content"], **flags)
