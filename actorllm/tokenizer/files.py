"""Reads the tokenizer's files of a Hugging Face directory into the `tokenizers` library.

tokenizer.json as it is; or GPT-2's pair vocab.json + merges.txt with the pre-tokenizer that the tokenizer's class stands for; or
tokenizer.model or *.tiktoken (modules of their own). Added tokens that only tokenizer_config.json lists are added at the ids it
gives them. Every failure is a `TokenizerError` that names the file. Knows nothing of prompts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from actorllm.errors import TokenizerError
from actorllm.tokenizer.sentencepiece_file import read_sentencepiece
from actorllm.tokenizer.tiktoken_file import QWEN_WORDS, is_tiktoken, read_tiktoken

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


def read_library(directory: Path, config: Mapping[str, Any]) -> tuple[Library, dict[str, Any]]:
    """The library's tokenizer of `directory`, and its tokenizer_config.json `config` with what the other files say for it."""
    lists = [*sorted(directory.glob("*.tiktoken")), *directory.glob("tokenizer.model")]
    added, defaults = _listed_tokens(directory, config), {}
    if (directory / "tokenizer.json").exists():
        library = _from_tokenizer_json(directory / "tokenizer.json")
    elif (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        library = _from_vocab_and_merges(directory, config)
        if "tokenizer_class" not in config:  # a bare GPT-2 directory names no special tokens: this is the one it has
            defaults = {"bos_token": GPT2_END, "eos_token": GPT2_END}
    elif lists:
        read = read_tiktoken if is_tiktoken(lists[0]) else read_sentencepiece
        library, defaults = read(lists[0], config, added=added)
    else:
        raise TokenizerError(
            "there is no tokenizer.json (nor vocab.json + merges.txt, tokenizer.model or *.tiktoken); download the checkpoint's "
            "tokenizer files too"
        )
    completed = {**defaults, **config}
    _add_tokens(library, added, completed)
    library.no_truncation()  # a checkpoint may carry the settings of its training
    library.no_padding()
    return library, completed


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
                pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
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


def _listed_tokens(directory: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The added tokens that the configuration lists, by their ids."""
    older = read_object(directory / "added_tokens.json")
    try:
        listed = {int(token_id): _added_token(token) for token_id, token in (config.get("added_tokens_decoder") or {}).items()}
        for content, token_id in older.items():
            listed.setdefault(int(token_id), AddedToken(content, normalized=False, special=False))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise TokenizerError(f"tokenizer_config.json: added_tokens_decoder is malformed: {error}") from error
    return listed


def _add_tokens(library: Library, listed: Mapping[int, AddedToken], config: Mapping[str, Any]) -> None:
    """Add the listed tokens that the library does not have as added tokens, at their ids, and mark the special ones."""
    present = {token.content for token in library.get_added_tokens_decoder().values()}
    for token_id, token in sorted(listed.items()):
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
