"""Real tokenizers, loaded once, and tiny ones that are built here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from actorllm.tokenizer import load
from actorllm.tokenizer.pieces import byte_level_alphabet

REAL = ("tokenizers/gpt2", "tokenizers/qwen2-0.5b", "tokenizers/phi-3-mini", "tokenizers/internlm-20b", "models/stories260K")


@pytest.fixture(scope="session", params=REAL, ids=lambda name: name.split("/")[1])
def real_tokenizer(request: pytest.FixtureRequest, data_dir: Path, load_real: Callable) -> load.Tokenizer:
    """Each of the real tokenizers in turn."""
    return load_real(request.param)


@pytest.fixture(scope="session")
def load_real(data_dir: Path) -> Callable[[str], load.Tokenizer]:
    """Loads a real tokenizer by its place in the data folder, once."""
    loaded: dict[str, load.Tokenizer] = {}

    def load_once(name: str) -> load.Tokenizer:
        if name not in loaded:
            loaded[name] = load.Tokenizer.load(data_dir / name)
        return loaded[name]

    return load_once


@pytest.fixture
def tiny_bytes() -> Tokenizer:
    """Byte-level: 256 bytes, one merge, one special token, one added token with characters outside of the alphabet."""
    vocab = {character: byte for byte, character in enumerate(byte_level_alphabet())} | {"he": 256}
    library = Tokenizer(models.BPE(vocab, [("h", "e")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>", "<|end|>"])
    library.add_tokens([AddedToken("日本 語", normalized=False)])
    return library


@pytest.fixture
def tiny_fallback() -> Tokenizer:
    """SentencePiece-like with byte fallback, as Llama 2 has it."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "a", "b", "é", "▁▁"]
    vocab = {token: place for place, token in enumerate(tokens)}
    library = Tokenizer(models.BPE(vocab, [("▁", "a"), ("▁", "▁")], byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return library


@pytest.fixture
def tiny_words() -> Tokenizer:
    """Whole words, with no decoder yet."""
    tokens = ["[UNK]", "do", "not", "n't", ".", "##ing", "▁a", "b▁c", "▁▁", "é", "</w>", "x</w>", "<0xC3>", "<0xA9>", "<s>"]
    library = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["<s>"])
    return library


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint's tokenizer files into a folder: the library's tokenizer, and JSON files by name."""

    def write(library: Tokenizer | None = None, **files: Any) -> Path:
        if library is not None:
            library.save(str(tmp_path / "tokenizer.json"))
        for name, value in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        return tmp_path

    return write
