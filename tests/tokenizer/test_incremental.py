"""Streamed pieces join to the one-shot decoding, for any ids, and never show what a later id takes back."""

import asyncio
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders
from tokenizers import Tokenizer as Library

from actorllm.tokenizer.incremental import IncrementalDecoder
from actorllm.tokenizer.load import Tokenizer

TEXTS = [
    "Hello, world! It's 3.14 o'clock — isn't it?\n\n  indented\ttab",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}  # 注释\r\n",
    "Grüße, 日本語のテキスト, русский текст, العربية, हिन्दी, ไทย, 한국어, ქართული",
    "👩‍👩‍👧‍👦 🇪🇺 👍🏽 e\u0301 \u200b\ufeff \U0001f9d1\U0001f3fe\u200d\U0001f4bb ℵ₀ ∑∞ \U0001d518",
    "  leading and trailing  ",
    "\ufffd is a real character here \ufffd\ufffd",
]


def streamed(tokenizer: Tokenizer, ids: Sequence[int], prompt_ids: Sequence[int] = (), *, skip: bool = True) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, prompt_ids, skip_special_tokens=skip)
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


def random_ids(tokenizer: Tokenizer, rng: random.Random, *, num: int) -> list[list[int]]:
    """Any ids, with many parts of characters, special tokens, and ids that do not exist."""
    all_ids = range(tokenizer.vocab_size)
    parts = [token_id for token_id in all_ids if len(tokenizer.token_bytes(token_id)) == 1]
    broken = [token_id for token_id in all_ids if "\ufffd" in tokenizer.token_text(token_id)]
    pools = [all_ids, parts, broken or parts, sorted(tokenizer.special_ids), [tokenizer.vocab_size + 7]]
    return [[rng.choice(pool) for pool in rng.choices(pools, weights=[6, 3, 3, 1, 0.3], k=rng.randrange(24))] for _ in range(num)]


@pytest.mark.parametrize("skip", [True, False])
def test_random_ids_of_real_tokenizers(real_tokenizer: Tokenizer, skip: bool) -> None:
    for ids in random_ids(real_tokenizer, random.Random(7), num=500):
        assert "".join(streamed(real_tokenizer, ids, skip=skip)) == real_tokenizer.decode(ids, skip_special_tokens=skip), ids


@pytest.mark.parametrize("text", TEXTS)
async def test_text_of_real_tokenizers(real_tokenizer: Tokenizer, text: str) -> None:
    ids = await real_tokenizer.encode(text, add_special_tokens=False)
    pieces = streamed(real_tokenizer, ids)
    assert "".join(pieces) == real_tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", TEXTS[:-1])
async def test_a_completion_continues_its_prompt(real_tokenizer: Tokenizer, text: str) -> None:
    """After a prompt the pieces are what decoding both together adds, leading spaces included."""
    ids = await real_tokenizer.encode(text, add_special_tokens=True)
    for cut in range(len(ids) + 1):
        before = real_tokenizer.decode(ids[:cut])
        if "\ufffd" in before:
            continue  # the cut goes through a character
        assert before + "".join(streamed(real_tokenizer, ids[cut:], ids[:cut])) == real_tokenizer.decode(ids)


def test_every_piece_is_a_prefix_that_stays(real_tokenizer: Tokenizer) -> None:
    """Whatever ids follow, the final text begins with what was shown."""
    samples = random_ids(real_tokenizer, random.Random(11), num=200)
    for ids, followers in zip(samples, reversed(samples), strict=True):
        pieces = streamed(real_tokenizer, ids)
        for cut in range(len(ids)):
            shown = "".join(pieces[: cut + 1])
            assert real_tokenizer.decode([*ids[: cut + 1], *followers]).startswith(shown)


def test_special_tokens_only_in_the_prompt_begin_a_text(tiny_fallback: Library) -> None:
    tokenizer = Tokenizer(tiny_fallback, {}, chat_template={})
    a = tokenizer.id_of("▁a")
    assert a is not None
    assert streamed(tokenizer, [a], [1]) == ["a", ""]
    assert streamed(tokenizer, [a], [1, a]) == [" a", ""]
    assert "".join(streamed(tokenizer, [a], [1], skip=False)) == " a"


def test_a_run_of_bytes_is_replaced_as_a_whole(tiny_fallback: Library) -> None:
    """The library replaces a run with one invalid byte completely; the text before it is not held."""
    tokenizer = Tokenizer(tiny_fallback, {}, chat_template={})
    a = tokenizer.id_of("a")
    euro = [3 + byte for byte in "€".encode()]
    assert a is not None
    assert streamed(tokenizer, [a, *euro, a]) == ["a", "", "", "", "€a", ""]
    assert streamed(tokenizer, [a, *euro, 3 + 0xFF, a]) == ["a", "", "", "", "", "\ufffd" * 4 + "a", ""]
    assert streamed(tokenizer, euro[:2]) == ["", "", "\ufffd\ufffd"]


def test_a_character_is_never_broken(tiny_bytes: Library) -> None:
    tokenizer = Tokenizer(tiny_bytes, {}, chat_template={})
    ids = asyncio.run(tokenizer.encode("a€😀"))
    assert streamed(tokenizer, ids) == ["a", "", "", "€", "", "", "", "😀", ""]
    assert streamed(tokenizer, ids[:2]) == ["a", "", "\ufffd"]


WORD_DECODERS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "metaspace": lambda: decoders.Metaspace(),
    "metaspace, never": lambda: decoders.Metaspace(prepend_scheme="never"),
    "wordpiece": lambda: decoders.WordPiece(),
    "wordpiece, as is": lambda: decoders.WordPiece(cleanup=False),
    "fallback without strip": lambda: decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]),
    "fallback alone": lambda: decoders.ByteFallback(),
    "regex, fallback": lambda: decoders.Sequence(
        [decoders.Replace(Regex("[▁n]"), "*"), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "unknown: replace alone": lambda: decoders.Replace("▁", " "),
    "unknown: fuse, replace": lambda: decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")]),
}


@pytest.mark.parametrize("name", WORD_DECODERS)
def test_other_decoders(tiny_words: Library, name: str) -> None:
    tiny_words.decoder = WORD_DECODERS[name]()
    check_any_ids(Tokenizer(tiny_words, {}, chat_template={}))


def test_any_ids_of_tiny_tokenizers(tiny_bytes: Library, tiny_fallback: Library) -> None:
    for library in (tiny_bytes, tiny_fallback):
        check_any_ids(Tokenizer(library, {}, chat_template={}))


def check_any_ids(tokenizer: Tokenizer) -> None:
    @settings(max_examples=150, deadline=None)
    @given(ids=st.lists(st.integers(0, tokenizer.vocab_size), max_size=14), skip=st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        assert "".join(streamed(tokenizer, ids, skip=skip)) == tokenizer.decode(ids, skip_special_tokens=skip)

    check()


def test_a_decoder_that_cannot_be_taken_apart_still_streams(tiny_words: Library) -> None:
    """BPEDecoder looks at the last token: unknown here, shown from a bounded window."""
    tiny_words.decoder = decoders.BPEDecoder()
    tokenizer = Tokenizer(tiny_words, {}, chat_template={})
    ids = [tokenizer.id_of("do"), tokenizer.id_of("x</w>"), tokenizer.id_of("not")] * 50
    pieces = streamed(tokenizer, [token_id for token_id in ids if token_id is not None])
    assert all(pieces[:100])
    assert len("".join(pieces)) >= 300


async def test_work_per_token_does_not_grow(load_real: Callable[[str], Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    """No re-decoding of what was there before: the one-shot decoding is never called."""
    tokenizer = load_real("models/stories260K")
    ids = await tokenizer.encode("Once upon a time, € and 😀 met. " * 50)
    whole = tokenizer.decode(ids)
    monkeypatch.setattr(tokenizer, "decode", lambda *_, **__: pytest.fail("decoded again"))
    assert "".join(streamed(tokenizer, ids)) == whole
