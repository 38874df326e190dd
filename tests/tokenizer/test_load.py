"""Directories of real and tiny tokenizers; what is added to a text; what is refused, and with which file's name."""

import asyncio
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Library

from actorllm.context import TokenLimit
from actorllm.errors import InvalidRequest, PromptTooLong, TokenizerError
from actorllm.tokenizer.generation_config import GenerationDefaults, load_generation_config
from actorllm.tokenizer.load import Tokenizer

TEXTS = [
    "Hello, world! It's 3.14 o'clock\n\n  indented\ttab  ",
    "I'LL don't 12345 naïve CAFÉ e\u0301 日本語 😀 \u00a0x",
    "",
    " ",
    "def f(x):\r\n    return x",
    "a<s>b</s><|endoftext|> c <|im_end|>\nd",
]
Save = Callable[..., Path]


def ids_of(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
    return asyncio.run(tokenizer.encode(text, add_special_tokens=add_special_tokens))


@pytest.mark.parametrize("name", ["tokenizers/phi-3-mini", "models/stories260K"])
def test_equals_transformers(data_dir: Path, load_real: Callable[[str], Tokenizer], name: str) -> None:
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(data_dir / name / "tokenizer.json"))
    ours = load_real(name)
    for text, add in itertools.product(TEXTS, (True, False)):
        ids = theirs.encode(text, add_special_tokens=add)
        assert ids_of(ours, text, add_special_tokens=add) == ids
        assert ours.decode(ids, skip_special_tokens=add) == theirs.decode(
            ids, skip_special_tokens=add, clean_up_tokenization_spaces=False
        )


@pytest.mark.parametrize("name", ["tokenizers/gpt2", "tokenizers/phi-3-mini", "models/stories260K"])
@pytest.mark.parametrize("text", [" " * 4000, "a" * 4000, "Once upon a time. " * 300, "<|endoftext|>" * 400, "\n\n\t" * 900, "\u0301" * 2000])
def test_a_limit_refuses_nothing_that_fits(load_real: Callable[[str], Tokenizer], name: str, text: str) -> None:
    """Though far more characters than ordinary text has for so many tokens."""
    tokenizer = load_real(name)
    ids = ids_of(tokenizer, text)
    bare = asyncio.run(tokenizer.encode(text, add_special_tokens=False))
    assert asyncio.run(tokenizer.encode(text, limit=TokenLimit(len(bare), ""))) == ids
    with pytest.raises(PromptTooLong, match=f"the prompt has {len(bare)} tokens, but no"):
        asyncio.run(tokenizer.encode(text, limit=TokenLimit(len(bare) - 1, "no")))


async def test_of_a_text_that_is_far_too_long_the_beginning_is_encoded(load_real, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, seen = load_real("models/stories260K"), []
    encode = tokenizer._encoding
    monkeypatch.setattr(tokenizer, "_encoding", lambda text: (seen.append(len(text)), encode(text))[1])
    with pytest.raises(PromptTooLong, match=r"more than \d+ tokens"):
        await tokenizer.encode("the " * 10_000, limit=TokenLimit(100, "no"))
    assert seen == [800]


@pytest.mark.parametrize("kind", ["qwen2-0.5b", "gpt2"])
def test_vocab_and_merges_equal_transformers(data_dir: Path, load_real: Callable[[str], Tokenizer], kind: str) -> None:
    folder = data_dir / "tokenizers" / kind
    if kind == "gpt2":
        merges: Any = [tuple(line.split(" ")) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
        theirs: Any = transformers.GPT2Tokenizer(vocab=json.loads((folder / "vocab.json").read_text()), merges=merges)
    else:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_real(f"tokenizers/{kind}")
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ids_of(ours, text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_facts_of_real_tokenizers(load_real: Callable[[str], Tokenizer]) -> None:
    qwen = load_real("tokenizers/qwen2-0.5b")
    assert (qwen.vocab_size, qwen.bos_id, qwen.eos_id) == (151646, None, 151645)
    assert qwen.invalid_ids(151936) == list(range(151646, 151936))
    assert qwen.special_ids == {151643, 151644, 151645}
    gpt2 = load_real("tokenizers/gpt2")
    assert (gpt2.vocab_size, gpt2.bos_id, gpt2.eos_id) == (50257, 50256, 50256)
    assert gpt2.invalid_ids(50257) == []
    stories = load_real("models/stories260K")
    assert (stories.vocab_size, stories.bos_id, stories.eos_id) == (512, 1, 2)


def test_bytes_of_tokens(real_tokenizer: Tokenizer) -> None:
    text = "Grüße 日本 😀"
    ids = ids_of(real_tokenizer, text, add_special_tokens=False)
    assert b"".join(map(real_tokenizer.token_bytes, ids)).decode().strip() == text
    assert real_tokenizer.token_bytes(10**6) == b""
    assert real_tokenizer.token_text(10**6) == ""


def test_text_of_a_part_of_a_character(tiny_bytes: Library) -> None:
    tokenizer = Tokenizer(tiny_bytes, {}, chat_template={})
    first, second = ids_of(tokenizer, "é")
    assert (tokenizer.token_bytes(first), tokenizer.token_text(first)) == (b"\xc3", "\ufffd")
    assert tokenizer.token_bytes(second) == b"\xa9"
    end = tokenizer.id_of("<|end|>")
    assert end is not None and tokenizer.token_text(end) == "<|end|>"


# --- BOS and EOS ---


def with_template(library: Library, pattern: str) -> Library:
    named = [(token, library.token_to_id(token)) for token in ("<s>", "</s>")]
    library.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=named)
    return library


NAMES = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}


@pytest.mark.parametrize(
    ("pattern", "flags", "expected"),
    [
        ("<s> $A", {}, "<s>he"),
        ("$A", {}, "he"),
        ("<s> $A </s>", {}, "<s>he</s>"),
        ("$A", {"add_bos_token": True}, "<s>he"),
        ("<s> $A", {"add_bos_token": True}, "<s>he"),
        ("<s> $A", {"add_bos_token": False}, "he"),
        ("<s> $A", {"add_eos_token": True}, "<s>he</s>"),
        ("<s> $A </s>", {"add_eos_token": False}, "<s>he"),
    ],
)
def test_what_is_added(tiny_bytes: Library, save: Save, pattern: str, flags: dict, expected: str) -> None:
    tokenizer = Tokenizer.load(save(with_template(tiny_bytes, pattern), tokenizer_config={**NAMES, **flags}))
    assert tokenizer.decode(ids_of(tokenizer, "he"), skip_special_tokens=False) == expected
    assert tokenizer.decode(ids_of(tokenizer, "he", add_special_tokens=False), skip_special_tokens=False) == "he"


def test_bos_is_never_doubled(tiny_bytes: Library, save: Save) -> None:
    tokenizer = Tokenizer.load(save(with_template(tiny_bytes, "<s> $A"), tokenizer_config=NAMES))
    for add in (True, False):
        ids = ids_of(tokenizer, "<s>he", add_special_tokens=add)
        assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>he"
    assert ids_of(tokenizer, "") == [tokenizer.bos_id]


def test_training_time_truncation_and_padding_are_off(tiny_bytes: Library, save: Save) -> None:
    tiny_bytes.enable_truncation(4)
    tiny_bytes.enable_padding(length=8)
    tokenizer = Tokenizer.load(save(tiny_bytes))
    assert len(ids_of(tokenizer, "x" * 100)) == 100
    assert len(ids_of(tokenizer, "x")) == 1


def test_special_tokens_map_and_added_tokens(tiny_bytes: Library, save: Save) -> None:
    size = tiny_bytes.get_vocab_size()
    added = {str(size): {"content": "<|new|>", "special": True}, str(size + 1): {"content": "<tool>", "special": False}}
    folder = save(tiny_bytes, special_tokens_map={"eos_token": "<|new|>"}, tokenizer_config={"added_tokens_decoder": added})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_id == size
    assert ids_of(tokenizer, "<|new|><tool>") == [size, size + 1]
    assert size in tokenizer.special_ids and size + 1 not in tokenizer.special_ids
    assert tokenizer.special_tokens == {"eos_token": "<|new|>"}


def test_holes_in_the_vocabulary_are_invalid(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 4
    assert tokenizer.invalid_ids(6) == [1, 2, 4, 5]


def test_the_breaker_keeps_a_special_token_text(real_tokenizer: Tokenizer) -> None:
    for special in real_tokenizer.special_texts():
        broken = ids_of(real_tokenizer, real_tokenizer.breaker.join(special), add_special_tokens=False)
        assert not real_tokenizer.special_ids & set(broken) - {0}  # 0: <unk>, for want of a character
        assert real_tokenizer.id_of(special) in ids_of(real_tokenizer, special)


# --- refusals ---


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({}, "tokenizer.json"),
        ({"tokenizer.json": "{"}, "tokenizer.json"),
        ({"tokenizer.json": "[]"}, "tokenizer.json"),
        ({"tokenizer.json": '{"model": {"type": "Nonsense"}}'}, "tokenizer.json"),
        ({"vocab.json": "{", "merges.txt": ""}, "vocab.json"),
        ({"vocab.json": "{}", "merges.txt": "a b c d"}, "merges.txt"),
        (
            {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "BartTokenizer"}'},
            "BartTokenizer",
        ),
        ({"tokenizer_config.json": "\x00"}, "tokenizer_config.json"),
        ({"tokenizer_config.json": "[1]"}, "tokenizer_config.json"),
        ({"special_tokens_map.json": "nope"}, "special_tokens_map.json"),
        ({"tokenizer.model": "spm"}, "tokenizer.model"),
        ({"qwen.tiktoken": "x"}, "qwen.tiktoken"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, files: dict[str, str], named: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TokenizerError, match=named.replace(".", r"\.")):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": 7},
        {"added_tokens_decoder": {"x": {}}},
        {"added_tokens_decoder": {"7": "text"}},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"9999": {"content": "<far>"}}},
        {"chat_template": 3},
        {"chat_template": [{"name": "default"}]},
        {"chat_template": [{"name": "default", "template": None}]},
    ],
)
def test_malformed_configuration_is_named(tiny_bytes: Library, save: Save, config: dict) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        Tokenizer.load(save(tiny_bytes, tokenizer_config=config))


def test_a_truncated_real_file(data_dir: Path, tmp_path: Path) -> None:
    whole = (data_dir / "models" / "stories260K" / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_text_that_is_not_unicode(tiny_bytes: Library) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        ids_of(Tokenizer(tiny_bytes, {}, chat_template={}), "a\ud800b")


# --- chat templates in the files ---


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        ({"tokenizer_config": {"chat_template": "A"}}, {"default": "A"}),
        (
            {"tokenizer_config": {"chat_template": [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]}},
            {"default": "A", "rag": "B"},
        ),
        ({"tokenizer_config": {"chat_template": "A"}, "chat_template": {"chat_template": "C"}}, {"default": "C"}),
    ],
)
def test_where_chat_templates_come_from(tiny_bytes: Library, save: Save, files: dict, expected: dict) -> None:
    folder = save(tiny_bytes, **files)
    assert Tokenizer.load(folder).chat_template == expected
    (folder / "chat_template.jinja").write_text("D ü", encoding="utf-8")
    assert Tokenizer.load(folder).chat_template == {"default": "D ü"}


# --- generation_config.json ---


def test_generation_defaults(save: Save) -> None:
    folder = save(
        generation_config={
            "eos_token_id": [5, 6],
            "bos_token_id": 1,
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
            "repetition_penalty": 1.1,
            "max_new_tokens": 99,
            "unknown": {},
        },
        config={"eos_token_id": 9},
    )
    assert load_generation_config(folder) == GenerationDefaults(
        eos_ids=(5, 6), bos_id=1, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.1, max_new_tokens=99
    )
    params = load_generation_config(folder).params()
    assert (params.temperature, params.top_k, params.max_tokens, params.usual_tokens, params.min_p) == (0.7, 20, None, 99, 0.0)


def test_not_sampling_is_temperature_zero(save: Save) -> None:
    assert load_generation_config(save(generation_config={"do_sample": False, "temperature": 0.6})).temperature == 0.0
    assert load_generation_config(save(generation_config={})).temperature is None


def test_eos_is_searched_in_order(tiny_bytes: Library, save: Save) -> None:
    folder = save(tiny_bytes, tokenizer_config=NAMES)
    tokenizer = Tokenizer.load(folder)
    assert load_generation_config(folder).eos_ids == ()
    assert load_generation_config(folder, tokenizer=tokenizer).eos_ids == (tokenizer.eos_id,)
    save(config={"eos_token_id": 3})
    assert load_generation_config(folder, tokenizer=tokenizer).eos_ids == (3,)
    save(generation_config={"eos_token_id": 4})
    assert load_generation_config(folder, tokenizer=tokenizer).eos_ids == (4,)


@pytest.mark.parametrize(
    "values",
    [{"eos_token_id": "x"}, {"eos_token_id": [1, None]}, {"top_k": 1.5}, {"top_p": "0.8"}, {"temperature": True}, {"top_p": 7}],
)
def test_wrong_generation_values_are_named(save: Save, values: dict) -> None:
    with pytest.raises(TokenizerError, match=r"generation_config\.json"):
        load_generation_config(save(generation_config=values)).params()


def test_qwen2_words_are_chosen_by_class_or_model(data_dir: Path, tmp_path: Path) -> None:
    """Without tokenizer_config.json, config.json's model type tells Qwen2's files from GPT-2's."""
    for name in ("vocab.json", "merges.txt", "config.json"):
        shutil.copy(data_dir / "tokenizers" / "qwen2-0.5b" / name, tmp_path / name)
    digits = ids_of(Tokenizer.load(tmp_path), "2024")
    assert len(digits) == 4  # Qwen2 splits numbers into digits, GPT-2 does not


def test_normalized_added_tokens_keep_their_flags(tiny_bytes: Library, save: Save) -> None:
    tiny_bytes.add_tokens([AddedToken("<x>", rstrip=True, normalized=False)])
    tokenizer = Tokenizer.load(save(tiny_bytes))
    assert tokenizer.decode(ids_of(tokenizer, "<x>   he")) == "<x>he"
