"""*.tiktoken alone: a real vocabulary gives what transformers gives for it, and any bytes what the definition gives."""

import asyncio
import base64
import json
import random
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers

from actorllm.errors import TokenizerError
from actorllm.tokenizer.incremental import IncrementalDecoder
from actorllm.tokenizer.load import Tokenizer
from actorllm.tokenizer.pieces import byte_level_alphabet

TEXTS = [
    "Hello, world! It's 3.14 o'clock\n\n  indented\ttab  ",
    "I'LL don't 12345 naïve CAFÉ e\u0301 日本語 😀 \u00a0x",
    "",
    "def f(x):\r\n    return x",
    "a<|endoftext|> c <|im_end|>\nd",
]
GLM4 = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|user|>")


def ids_of(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
    return asyncio.run(tokenizer.encode(text, add_special_tokens=add_special_tokens))


def write(path: Path, ranks: Mapping[bytes, int]) -> None:
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))


@pytest.fixture(scope="session")
def qwen_folder(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real vocabulary of Qwen, as Qwen 1 ships it."""
    folder, alphabet = tmp_path_factory.mktemp("qwen"), byte_level_alphabet()
    vocab = json.loads((data_dir / "tokenizers" / "qwen2-0.5b" / "vocab.json").read_text())
    write(folder / "qwen.tiktoken", {bytes(map(alphabet.__getitem__, token)): rank for token, rank in vocab.items()})
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "QWenTokenizer", "model_max_length": 8192}))
    return folder


@pytest.fixture(scope="session")
def qwen(qwen_folder: Path) -> Tokenizer:
    return Tokenizer.load(qwen_folder)


def test_a_real_vocabulary_equals_transformers(data_dir: Path, qwen: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(data_dir / "tokenizers" / "qwen2-0.5b")
    rng = random.Random(3)
    words = [theirs.convert_tokens_to_string([token]) for token in theirs.convert_ids_to_tokens(rng.sample(range(151643), 4000))]
    mixed = ["".join(rng.choices(words, k=8)) for _ in range(500)]
    for text in TEXTS + mixed:
        ids = theirs.encode(text)
        assert ids_of(qwen, text) == ids, text
        assert qwen.decode(ids, skip_special_tokens=False) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_facts(qwen: Tokenizer) -> None:
    assert (qwen.vocab_size, qwen.bos_id, qwen.eos_id) == (151851, None, 151643)
    assert (qwen.id_of("<|im_start|>"), qwen.id_of("<|im_end|>"), qwen.id_of("<|extra_204|>")) == (151644, 151645, 151850)
    assert qwen.special_ids == set(range(151643, 151851))


def test_any_ids_stream_to_the_same_text(qwen: Tokenizer) -> None:
    rng = random.Random(5)
    for _ in range(300):
        ids = rng.choices(range(qwen.vocab_size), k=rng.randrange(20)) + rng.choices(range(256), k=rng.randrange(6))
        decoder = IncrementalDecoder(qwen)
        assert "".join([*map(decoder.push, ids), decoder.flush()]) == qwen.decode(ids)


def by_definition(text: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The pair that joins to the lowest rank is joined, the leftmost first, until none does."""
    parts = [bytes([byte]) for byte in text]
    while True:
        joined = [(ranks[left + right], place) for place, (left, right) in enumerate(pairwise(parts)) if left + right in ranks]
        if not joined:
            return [ranks[part] for part in parts]
        place = min(joined)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., dict[bytes, int]]:
    """Writes a GLM-4 tokenizer whose words of a and b merge in many ways."""

    def make(name: str = "tokenizer.model", **config: Any) -> dict[bytes, int]:
        merged = [b"aa", b"ab", b"ba", b"aab", b"bab", b"aaa", b"aba", b"abab", b"aabaa", b"baba", b"aaaa"]
        ranks = {bytes([byte]): byte for byte in range(256)} | {token: 256 + place for place, token in enumerate(merged)}
        write(tmp_path / name, ranks)
        added = {str(len(ranks) + place): {"content": token, "special": True} for place, token in enumerate(GLM4)}
        settings = {"tokenizer_class": "ChatGLM4Tokenizer", "eos_token": "<|endoftext|>", "added_tokens_decoder": added} | config
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return ranks

    return make


def test_words_merge_by_the_definition(tiny: Callable[..., dict[bytes, int]], tmp_path: Path) -> None:
    ranks, rng = tiny(), random.Random(9)
    tokenizer = Tokenizer.load(tmp_path)
    for _ in range(500):
        word = "".join(rng.choices("ab", k=rng.randrange(1, 20)))
        assert ids_of(tokenizer, word, add_special_tokens=False) == by_definition(word.encode(), ranks), word


def test_glm4_begins_a_text_and_reads_numbers_by_three(tiny: Callable[..., dict[bytes, int]], tmp_path: Path) -> None:
    ranks = tiny()
    tokenizer = Tokenizer.load(tmp_path)
    size = len(ranks)
    assert ids_of(tokenizer, "b<|user|>") == [size + 2, size + 4, ord("b"), size + 6]
    assert ids_of(tokenizer, "aa", add_special_tokens=False) == [256]
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (size, size + len(GLM4))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", r"qwen\.tiktoken, line 1: not a token"),
        ("YQ== 0\nYQ= 1\n", r"qwen\.tiktoken, line 2"),
        ("YQ== 0\nYg== 0\n", r"qwen\.tiktoken: a token or rank is there twice"),
        ("YQ== 0\n", "a single byte is not"),
        ("", "a single byte is not"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "qwen.tiktoken").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "QWenTokenizer"}')
    with pytest.raises(TokenizerError, match=words):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"tokenizer_class": "UnheardOfTokenizer"},
            r"tokenizer\.model does not say where words end, and of a UnheardOfTokenizer .*save_pretrained",
        ),
        ({"added_tokens_decoder": {}}, r"no ids of \[gMASK\] and <sop>"),
    ],
)
def test_what_the_class_does_not_tell(tiny: Callable[..., dict[bytes, int]], tmp_path: Path, config: dict, words: str) -> None:
    tiny(**config)
    with pytest.raises(TokenizerError, match=words):
        Tokenizer.load(tmp_path)
