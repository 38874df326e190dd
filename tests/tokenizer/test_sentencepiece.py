"""tokenizer.model alone: the same ids and texts as the sentencepiece library, of a real file and of tiny ones trained here."""

import asyncio
import io
import json
import random
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from actorllm import LLM, SamplingParams
from actorllm.errors import TokenizerError
from actorllm.tokenizer.incremental import IncrementalDecoder
from actorllm.tokenizer.load import Tokenizer

CHARACTERS = "aabbee  \n\tthé€日本語😀012345<>_/.,'\"-="
SENTENCES = ["the theatre has the best seats", "a bee sees the sea", "日本語 the text", "an aab baa bab", "éa é 12 345 e"] * 4
KINDS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", "vocab_size": 90},
    "bpe, byte fallback, identity": {"model_type": "bpe", "vocab_size": 330, "byte_fallback": True, "normalization_rule_name": "identity"},
    "bpe, spaces kept": {"model_type": "bpe", "vocab_size": 90, "remove_extra_whitespaces": False},
    "bpe, no dummy prefix": {"model_type": "bpe", "vocab_size": 90, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "bpe, user-defined": {"model_type": "bpe", "vocab_size": 90, "user_defined_symbols": ["<x>", "<xy>", "th"]},
    "bpe, runs of spaces": {
        "model_type": "bpe", "vocab_size": 330, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "user_defined_symbols": ["▁▁", "▁▁▁", "\n\n", "<x>"],
    },
    "unigram": {"model_type": "unigram", "vocab_size": 60},
    "unigram, byte fallback": {"model_type": "unigram", "vocab_size": 310, "byte_fallback": True},
}  # fmt: skip
Train = Callable[..., sentencepiece.SentencePieceProcessor]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Trains a tiny model into the folder of the test."""

    def make(config: dict[str, Any] | None = None, **options: Any) -> sentencepiece.SentencePieceProcessor:
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.Train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=iter(SENTENCES),
            model_writer=written,
            minloglevel=3,
            hard_vocab_limit=False,
            num_threads=1,
            **options,
        )
        (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, **(config or {})}))
        return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())

    return make


def change(path: Path, **fields: Any) -> None:
    """Set fields of the model's specifications: trainer_spec_x, normalizer_spec_x."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    for name, value in fields.items():
        part, _, field = name.partition("_spec_")
        setattr(getattr(model, f"{part}_spec"), field, value)
    path.write_bytes(model.SerializeToString())


def ids_of(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    return asyncio.run(tokenizer.encode(text, add_special_tokens=add_special_tokens))


def texts(reference: sentencepiece.SentencePieceProcessor, *, num: int) -> list[str]:
    """Random characters, random pieces of the vocabulary, and runs; no names of control pieces, which are parsed on purpose."""
    rng = random.Random(5)
    pieces = [reference.IdToPiece(place) for place in range(reference.GetPieceSize()) if not reference.IsControl(place)]
    pieces = [piece.replace("▁", " ") for piece in pieces if piece not in ("<unk>", "\0")]
    runs = ["a", " ", "ab", "\n", "=", " \n", "aab", "0"]
    made = ["".join(rng.choices(CHARACTERS, k=rng.randrange(40))) for _ in range(num)]
    made += ["".join(rng.choices(pieces, k=rng.randrange(12))) for _ in range(num)]
    return made + [rng.choice(runs) * rng.randrange(40) for _ in range(num // 4)]


def test_a_real_file_gives_the_ids_of_the_library(data_dir: Path, load_real: Callable[[str], Tokenizer]) -> None:
    folder = data_dir / "tokenizers" / "internlm-20b"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_real("tokenizers/internlm-20b")
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (103168, 1, 2)
    assert tokenizer.special_ids == {0, 1, 2}
    for text in texts(reference, num=1500):
        ids = reference.encode(text)
        assert ids_of(tokenizer, text) == ids, text
        assert tokenizer.decode(ids) == reference.decode(ids) == text
    assert ids_of(tokenizer, "hello", add_special_tokens=True) == [1, *reference.encode("hello")]


@pytest.mark.parametrize("kind", KINDS)
def test_trained_models_give_the_ids_and_texts_of_the_library(train: Train, tmp_path: Path, kind: str) -> None:
    reference = train(**KINDS[kind])
    tokenizer = Tokenizer.load(tmp_path)
    for text in texts(reference, num=300):
        ids = reference.encode(text)
        assert ids_of(tokenizer, text) == ids, text
        if reference.unk_id() not in ids:  # which one leaves out and the other shows
            assert tokenizer.decode(ids) == reference.decode(ids), text


@pytest.mark.parametrize("kind", KINDS)
def test_any_ids_stream_to_the_same_text(train: Train, tmp_path: Path, kind: str) -> None:
    train(**KINDS[kind])
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.pieces.kind == "fallback"

    @settings(max_examples=100, deadline=None)
    @given(ids=st.lists(st.integers(0, tokenizer.vocab_size), max_size=14), skip=st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip)
        streamed = "".join([*map(decoder.push, ids), decoder.flush()])
        assert streamed == tokenizer.decode(ids, skip_special_tokens=skip)

    check()


def test_the_dummy_prefix_of_parts_between_special_tokens(train: Train, tmp_path: Path) -> None:
    """Llama's tokenizers put it before each part, those marked `"legacy": false` before the first."""
    reference = train({"tokenizer_class": "LlamaTokenizer"}, **KINDS["bpe"])
    middle = reference.encode("the"), [reference.PieceToId(piece) for piece in ("the", "th", "t")]
    assert ids_of(Tokenizer.load(tmp_path), "the</s>the") == [*middle[0], reference.eos_id(), *middle[0]]
    train({"tokenizer_class": "LlamaTokenizer", "legacy": False}, **KINDS["bpe"])
    later = ids_of(Tokenizer.load(tmp_path), "the</s>the")
    assert later[: len(middle[0]) + 1] == [*middle[0], reference.eos_id()]
    assert "".join(map(reference.IdToPiece, later[len(middle[0]) + 1 :])) == "the"


@pytest.mark.parametrize(
    ("config", "prefix"),
    [
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": None}, ["<s>"]),
        ({"tokenizer_class": "InternLM2TokenizerFast", "add_bos_token": None}, ["<s>"]),
        ({"tokenizer_class": "BaichuanTokenizer"}, []),
        ({"tokenizer_class": "UnheardOfTokenizer", "add_bos_token": True}, ["<s>"]),
        ({"tokenizer_class": "UnheardOfTokenizer", "add_eos_token": False}, []),
        ({"tokenizer_class": "ChatGLMTokenizer", "add_bos_token": None}, ["[gMASK]", "sop"]),
    ],
)
def test_what_a_text_begins_with(train: Train, tmp_path: Path, config: dict[str, Any], prefix: list[str]) -> None:
    reference = train(config, **KINDS["bpe"])
    tokenizer = Tokenizer.load(tmp_path)
    wanted = [tokenizer.id_of(token) for token in prefix]
    assert ids_of(tokenizer, "the sea", add_special_tokens=True) == [*wanted, *reference.encode("the sea")]
    assert tokenizer.special_tokens["eos_token"] == "</s>"


def test_chatglm_tokens_lie_behind_the_pieces(train: Train, tmp_path: Path) -> None:
    size = train({"tokenizer_class": "ChatGLMTokenizer"}, **KINDS["bpe"]).GetPieceSize()
    listed = {str(size + 1): {"content": "[gMASK]", "special": True}, str(size + 5): {"content": "<|user|>", "special": True}}
    train({"tokenizer_class": "ChatGLMTokenizer", "added_tokens_decoder": listed}, **KINDS["bpe"])
    tokenizer = Tokenizer.load(tmp_path)
    assert [tokenizer.id_of(token) for token in ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|user|>")] == list(
        range(size, size + 6)
    )


def test_an_added_token_takes_the_place_of_a_piece(train: Train, tmp_path: Path) -> None:
    options = {**KINDS["bpe, byte fallback, identity"], "user_defined_symbols": ["[UNUSED_1]", "[UNUSED_2]"]}
    place = train(**options).PieceToId("[UNUSED_2]")
    train({"added_tokens_decoder": {str(place): {"content": "<|start|>", "special": True}}}, **options)
    tokenizer = Tokenizer.load(tmp_path)
    assert ids_of(tokenizer, "<|start|>")[-1] == place and place in tokenizer.special_ids
    assert place not in ids_of(tokenizer, "[UNUSED_2]")
    assert ids_of(tokenizer, "[UNUSED_1]")[-1] == place - 1
    assert tokenizer.decode([place], skip_special_tokens=False) == "<|start|>"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"trainer_spec_model_type": 4}, "a model of type 4"),
        ({"trainer_spec_treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"normalizer_spec_escape_whitespaces": False}, "escape_whitespaces"),
    ],
)
def test_what_is_not_kept_is_refused(train: Train, tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    train(**KINDS["bpe"])
    change(tmp_path / "tokenizer.model", **fields)
    with pytest.raises(TokenizerError, match=rf"tokenizer\.model has .*{words}.*save_pretrained"):
        Tokenizer.load(tmp_path)


def test_a_symbol_that_its_normalizer_changes_is_refused(train: Train, tmp_path: Path) -> None:
    train(**KINDS["bpe"], user_defined_symbols=["①"])  # NFKC makes a 1 of it
    with pytest.raises(TokenizerError, match=r"tokenizer\.model has a user-defined symbol that its normalizer changes"):
        Tokenizer.load(tmp_path)


def test_unused_pieces_are_refused(train: Train, tmp_path: Path) -> None:
    train(**KINDS["bpe"])
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((tmp_path / "tokenizer.model").read_bytes())
    model.pieces[20].type = 5
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(TokenizerError, match=r"tokenizer\.model has pieces that are marked unused"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("data", [b"spm", b"", b"\xff" * 100])
def test_what_is_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model is no SentencePiece model"):
        Tokenizer.load(tmp_path)


def test_a_truncated_real_file(data_dir: Path, tmp_path: Path) -> None:
    whole = (data_dir / "tokenizers" / "internlm-20b" / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match=r"tokenizer\.model is no SentencePiece model"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("kind", ["bpe", "unigram, byte fallback"])
def test_damaged_files_are_read_or_named(train: Train, tmp_path: Path, kind: str) -> None:
    """Whichever bytes are wrong, and wherever the file ends."""
    train(**KINDS[kind])
    path, rng, num_named = tmp_path / "tokenizer.model", random.Random(1), 0
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole[: rng.choice((len(whole), rng.randrange(len(whole))))])
        for place in rng.choices(range(len(damaged)), k=min(3, len(damaged))):
            damaged[place] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            Tokenizer.load(tmp_path)
        except TokenizerError as error:
            assert "tokenizer.model" in error.message
            num_named += 1
    assert num_named > 50


def test_an_unknown_class_that_does_not_say_how_texts_begin(train: Train, tmp_path: Path) -> None:
    train({"tokenizer_class": "UnheardOfTokenizer", "add_bos_token": None}, **KINDS["bpe"])
    with pytest.raises(TokenizerError, match=r"UnheardOfTokenizer .*write add_bos_token"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf.message"])
def test_without_the_optional_packages_the_error_says_what_to_install(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    train(**KINDS["bpe"])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TokenizerError, match=r"reading tokenizer\.model needs .*pip install 'actorllm\[sentencepiece\]'"):
        Tokenizer.load(tmp_path)


def test_a_model_that_has_nothing_else_is_served(train: Train, tmp_path: Path) -> None:
    """Each token is followed by the next one of a text whose 鯨 is three byte tokens; the answer comes in pieces."""
    reference = train({"tokenizer_class": "LlamaTokenizer", "add_bos_token": None}, **KINDS["bpe, byte fallback, identity"])
    answer = reference.encode("the sea 鯨 best", add_bos=True)
    assert len(set(answer)) == len(answer) and any(map(reference.IsByte, answer))
    successors = [0] * reference.GetPieceSize()
    for token, successor in pairwise(answer):
        successors[token] = successor
    config = {
        "architectures": ["EchoForCausalLM"], "model_type": "echo", "vocab_size": len(successors), "num_hidden_layers": 2,
        "max_position_embeddings": 64, "next_ids": successors,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with LLM(str(tmp_path)) as llm:
        (text,) = llm.generate([""], SamplingParams(max_tokens=len(answer) - 1, temperature=0.0))
    assert text == "the sea 鯨 best"
