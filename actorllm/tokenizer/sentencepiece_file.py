"""Reads SentencePiece's tokenizer.model into the `tokenizers` library.

The pieces become a BPE or Unigram model whose merges are all pairs that join to a piece, by the piece's score; the normalizer
and the symbols that are never split do what the file says. What cannot be kept exactly is refused. The file's schema is
the `sentencepiece` package's own. Source: arXiv 1808.06226. Knows nothing of prompts.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from actorllm.errors import TokenizerError

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2

BEGINS_WITH_BOS = (
    "LlamaTokenizer",
    "CodeLlamaTokenizer",
    "GemmaTokenizer",
    "InternLMTokenizer",
    "InternLM2Tokenizer",
    "BaichuanTokenizer",
)
"""Classes that put BOS before a text unless add_bos_token says otherwise."""

CHATGLM_CLASS = "ChatGLMTokenizer"
CHATGLM_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
"""Tokens of ChatGLM2 and 3 that their code puts behind the file's pieces; a text begins with [gMASK] sop."""


def read_sentencepiece(
    path: Path, config: Mapping[str, Any], *, added: Mapping[int, AddedToken]
) -> tuple[Library, dict[str, Any]]:
    """The library's tokenizer, and the keys of tokenizer_config.json that the file states itself (BOS, EOS, unknown).

    An `added` token takes the place of the piece that has its id. Raises `TokenizerError` for a file that is none, or that asks
    for what is not implemented.
    """
    model = _parse(path)
    for token_id in added.keys() & set(range(len(model.pieces))):
        piece, token = model.pieces[token_id], added[token_id]
        if piece.piece != token.content:
            piece.piece, piece.type = token.content, CONTROL if token.special else USER_DEFINED
    characters = _characters(model, path.name)
    _refuse_what_is_not_kept(model, path.name, characters=characters)
    library = Library(_model(model, path.name))
    library.normalizer, pre_tokenizer = _normalizer(model, characters, is_legacy=config.get("legacy") is not False)
    if pre_tokenizer is not None:
        library.pre_tokenizer = pre_tokenizer
    strips_space = model.normalizer_spec.add_dummy_prefix or model.normalizer_spec.remove_extra_whitespaces
    stages = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*stages, decoders.Strip(" ", 1, 0)] if strips_space else stages)
    reserved = [piece.piece for piece in model.pieces if piece.type in (UNKNOWN, CONTROL)]
    library.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in reserved])
    return library, _class_defaults(library, model, config)


def _parse(path: Path) -> Any:
    """The file as SentencePiece's `ModelProto`."""
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise TokenizerError(
            f"reading {path.name} needs the package {error.name}: pip install 'actorllm[sentencepiece]'"
        ) from error
    model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"cannot read {path.name}: {error.strerror}") from error
    except DecodeError as error:
        raise TokenizerError(f"{path.name} is no SentencePiece model: {error}; copy the file again") from error
    if not model.pieces:
        raise TokenizerError(f"{path.name} is no SentencePiece model: it has no pieces; copy the file again")
    return model


def _characters(model: Any, name: str) -> normalizers.Normalizer | None:
    """What replaces characters, such as NFKC; None where nothing does."""
    table = model.normalizer_spec.precompiled_charsmap
    try:
        return normalizers.Precompiled(table) if table else None
    except Exception as error:  # boundary: the library raises bare Exception for a table that it cannot read
        raise TokenizerError(f"{name} has a table of characters that cannot be read; copy the file again") from error


def _refuse_what_is_not_kept(model: Any, name: str, *, characters: normalizers.Normalizer | None) -> None:
    pieces, normalizer = model.pieces, model.normalizer_spec
    known = {piece.piece for piece in pieces}
    whole = [piece.piece for piece in pieces if piece.type == USER_DEFINED]
    faults = {
        "pieces that are marked unused": any(piece.type == UNUSED for piece in pieces),
        "a piece that is there twice": len(known) != len(pieces),
        "no unknown piece": sum(piece.type == UNKNOWN for piece in pieces) != 1,
        "a user-defined symbol that its normalizer changes": characters is not None
        and any(characters.normalize_str(symbol) != symbol for symbol in whole),
        "spaces at the end of words (treat_whitespace_as_suffix)": model.trainer_spec.treat_whitespace_as_suffix,
        "spaces that are not escaped (escape_whitespaces)": not normalizer.escape_whitespaces,
        f"a model of type {model.trainer_spec.model_type}": model.trainer_spec.model_type not in (UNIGRAM, BPE),
    }
    found = [fault for fault, is_there in faults.items() if is_there]
    if found:
        raise TokenizerError(
            f"{name} has {found[0]}, which is not implemented; save it as tokenizer.json with transformers' save_pretrained"
        )


def _model(model: Any, name: str) -> models.Model:
    """The library's model of the pieces; ids are the places in the file."""
    is_byte_fallback = any(piece.type == BYTE for piece in model.pieces)
    unknown_id = next(place for place, piece in enumerate(model.pieces) if piece.type == UNKNOWN)
    try:
        if model.trainer_spec.model_type == UNIGRAM:
            scored = [(piece.piece, piece.score) for piece in model.pieces]
            return models.Unigram(scored, unk_id=unknown_id, byte_fallback=is_byte_fallback)
        return models.BPE(
            {piece.piece: place for place, piece in enumerate(model.pieces)},
            list(_merges(model)),
            unk_token=model.pieces[unknown_id].piece,
            fuse_unk=True,
            byte_fallback=is_byte_fallback,
            ignore_merges=any(piece.type == USER_DEFINED for piece in model.pieces),  # they come whole from the pre-tokenizer
        )
    except Exception as error:  # boundary: the library raises bare Exception for a model that it cannot build
        raise TokenizerError(f"{name} does not make a tokenizer: {error}") from error


def _merges(model: Any) -> Iterator[tuple[str, str]]:
    """Every pair of pieces that joins to a piece, pairs of better scored pieces first."""
    normal = {piece.piece: place for place, piece in enumerate(model.pieces) if piece.type == NORMAL}
    for piece in sorted(normal, key=lambda piece: (-model.pieces[normal[piece]].score, normal[piece])):
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        yield from sorted(
            (pair for pair in halves if normal.keys() >= set(pair)), key=lambda pair: (normal[pair[0]], normal[pair[1]])
        )


def _normalizer(
    model: Any, characters: normalizers.Normalizer | None, *, is_legacy: bool
) -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer | None]:
    """What happens to a text before it is split, and where it must be split.

    With `is_legacy` the dummy prefix is put before each part of a text between special tokens, else before the first.
    """
    spec = model.normalizer_spec
    steps: list[normalizers.Normalizer] = [] if characters is None else [characters]
    splits: list[pre_tokenizers.PreTokenizer] = []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix and is_legacy:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if spec.add_dummy_prefix and not is_legacy:
        splits.append(pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False))
    whole = sorted((piece.piece for piece in model.pieces if piece.type == USER_DEFINED), key=len, reverse=True)
    if whole:
        splits.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, whole))), behavior="isolated"))
    if whole or model.trainer_spec.model_type == UNIGRAM:  # those look words up in the whole vocabulary
        splits.append(_keep_names_apart(model))
    return normalizers.Sequence(steps), pre_tokenizers.Sequence(splits) if splits else None


def _keep_names_apart(model: Any) -> pre_tokenizers.PreTokenizer:
    """Cuts text that reads like the name of a control or byte piece (`<s>`) behind its first character, lest it be that piece.

    Unigram would find the name anywhere in a text, BPE as the whole of it.
    """
    names = [(piece.piece[:1], re.escape(piece.piece[1:])) for piece in model.pieces if piece.type in (UNKNOWN, CONTROL)]
    names += [("<", "0x[0-9A-F]{2}>")] if any(piece.type == BYTE for piece in model.pieces) else []
    start, end = ("", "") if model.trainer_spec.model_type == UNIGRAM else (r"\A", r"\z")
    cut = "|".join(f"{start}{re.escape(first)}(?={rest}{end})" for first, rest in names)
    return pre_tokenizers.Split(Regex(cut), behavior="isolated")


def _class_defaults(library: Library, model: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json need not say: names from the file, and what the tokenizer's class adds to a text."""
    named = {
        "bos_token": model.trainer_spec.bos_piece,
        "eos_token": model.trainer_spec.eos_piece,
        "unk_token": model.trainer_spec.unk_piece,
    }
    defaults: dict[str, Any] = {name: token for name, token in named.items() if library.token_to_id(token) is not None}
    kind = str(config.get("tokenizer_class")).removesuffix("Fast")
    if kind == CHATGLM_CLASS:
        library.add_special_tokens(list(CHATGLM_TOKENS))
        prefix = [(token, library.token_to_id(token)) for token in ("[gMASK]", "sop")]
        library.post_processor = processors.TemplateProcessing(single="[gMASK] sop $A", special_tokens=prefix)
    elif kind in BEGINS_WITH_BOS:
        defaults["add_bos_token"] = True
    elif "add_bos_token" not in config:
        raise TokenizerError(
            f"whether a {config.get('tokenizer_class') or 'tokenizer without tokenizer_class'} puts BOS before a text is not known: "
            "write add_bos_token, true or false, into tokenizer_config.json"
        )
    return defaults
