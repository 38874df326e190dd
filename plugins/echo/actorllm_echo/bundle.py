"""Writes the bundled checkpoint: `python -m actorllm_echo.bundle [FOLDER]`.

The tokenizer knows 256 bytes and the words of one sentence; a word of the sentence is one token, all else is
bytes. Every token but the sentence's own is followed by the sentence's first word, and "!" by the end of the text.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

SENTENCE = (" The", " quick", " brown", " fox", " jumps", " over", " the", " lazy", " dog", ".")
END = "<|end|>"
STOP = "!"
CONTEXT_LEN = 4096
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level tokenizers write for each byte (GPT-2, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def vocabulary() -> dict[str, int]:
    """Token -> id: the bytes are ids 0 .. 255, then come the words, and the end of the text is last."""
    alphabet = byte_alphabet()
    tokens = [alphabet[byte] for byte in range(256)]
    tokens += ["".join(alphabet[byte] for byte in word.encode()) for word in SENTENCE if len(word) > 1]
    return {token: index for index, token in enumerate([*tokens, END])}


def next_ids(vocab: dict[str, int]) -> list[int]:
    """The successor of each token."""
    alphabet = byte_alphabet()
    sentence = [vocab["".join(alphabet[byte] for byte in word.encode())] for word in SENTENCE]
    successors = [sentence[0]] * len(vocab)
    for token, successor in pairwise(sentence):
        successors[token] = successor
    successors[vocab[STOP]] = vocab[END]
    return successors


def files() -> dict[str, Any]:
    """The contents of the checkpoint's files, by name."""
    vocab = vocabulary()
    end = vocab[END]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "config.json": {
            "architectures": ["EchoForCausalLM"],
            "model_type": "echo",
            "vocab_size": len(vocab),
            "num_hidden_layers": 2,
            "max_position_embeddings": CONTEXT_LEN,
            "eos_token_id": end,
            "next_ids": next_ids(vocab),
        },
        "generation_config.json": {"eos_token_id": end},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "model_max_length": CONTEXT_LEN,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": end, "content": END, **special}],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": True,  # a word that is in the vocabulary is one token; there are no merges
                "vocab": vocab,
                "merges": [],
            },
        },
    }


def write(folder: Path) -> None:
    """Write the checkpoint into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "checkpoint")
