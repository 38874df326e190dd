"""Turns the device's logprob arrays into entries with text and bytes. Knows no requests."""

from actorllm.messages import TokenLogprob, TopLogprobs, unpack, unpack_floats
from actorllm.tokenizer.load import Tokenizer


def token_logprobs(
    tokenizer: Tokenizer, ids: list[int], scores: TopLogprobs
) -> list[tuple[TokenLogprob, tuple[TokenLogprob, ...]]]:
    """For each of `ids`: its own entry and the `scores.width` best ones."""
    chosen = unpack_floats(scores.chosen)
    top_ids, top_values = unpack(scores.ids), unpack_floats(scores.values)
    width = scores.width
    entries = []
    for index, token_id in enumerate(ids):
        best = range(index * width, (index + 1) * width)
        top = tuple(_entry(tokenizer, top_ids[place], top_values[place]) for place in best)
        entries.append((_entry(tokenizer, token_id, chosen[index]), top))
    return entries


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> TokenLogprob:
    return TokenLogprob(token_id, tokenizer.token_text(token_id), tokenizer.token_bytes(token_id), logprob)
