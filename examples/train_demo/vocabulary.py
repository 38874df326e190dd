"""The demo model's tokenizer and chat template: byte-level BPE over the generated text, digits one by one, a token per role."""

from collections.abc import Iterator
from random import Random
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from examples.train_demo.conversation import Message, conversation

VOCAB_SIZE = 2048
BEGIN, END, SYSTEM, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (BEGIN, END, SYSTEM, USER, ASSISTANT)
BEGIN_ID, END_ID, SYSTEM_ID, USER_ID, ASSISTANT_ID = range(5)
ROLE_IDS = {"system": SYSTEM_ID, "user": USER_ID, "assistant": ASSISTANT_ID}

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('this model knows the roles system, user and assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(seed: int, *, num_conversations: int = 20_000) -> Tokenizer:
    """A tokenizer of `VOCAB_SIZE` tokens; the special ones have the ids 0 to 4."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=5,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, num_conversations), trainer)
    return tokenizer


def _texts(seed: int, num_conversations: int) -> Iterator[str]:
    rng = Random(f"tokenizer {seed}")
    for _ in range(num_conversations):
        yield from (message["content"] for message in conversation(rng))


def encode(tokenizer: Tokenizer, messages: list[Message]) -> tuple[list[int], list[bool]]:
    """Ids as the chat template writes them, and which of them the model has to learn to say: answers and their ends."""
    ids, is_learned = [BEGIN_ID], [False]
    for message, encoding in zip(messages, tokenizer.encode_batch([each["content"] for each in messages]), strict=True):
        is_answer = message["role"] == "assistant"
        ids += [ROLE_IDS[message["role"]], *encoding.ids, END_ID]
        is_learned += [False] + [is_answer] * (len(encoding.ids) + 1)
    return ids, is_learned


def tokenizer_config(context_len: int) -> dict[str, Any]:
    """tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "add_bos_token": False,  # the chat template writes it
        "model_max_length": context_len,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
