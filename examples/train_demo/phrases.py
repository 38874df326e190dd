"""The ways in which people type: other grammar, other words, casing, missing marks, slips of the fingers. Knows no topic."""

import re
from random import Random

from msgspec import Struct

from examples.train_demo.syntax import TEXT as CARRIERS
from examples.train_demo.syntax import carried, is_question
from examples.train_demo.templates import Texts, one, read, sentence

NEIGHBOURS = "qwertyuiop asdfghjkl zxcvbnm"


class Typing(Struct, frozen=True, forbid_unknown_fields=True):
    """typing.toml. `fillers` are words that people strew in, `dropped` are those that they leave out in a hurry, `synonyms` are
    what they say instead."""

    fillers: Texts
    dropped: frozenset[str]
    synonyms: dict[str, Texts]


TYPING = read("typing.toml", Typing)
SAID_OTHERWISE = re.compile(rf"\b(?:{'|'.join(sorted(TYPING.synonyms, key=len, reverse=True))})\b")


def asked(text: str, rng: Random, *, has_slips: bool = True) -> str:
    """What somebody says, as they type it: perhaps inside of a carrier, in other words, with some strewn in or left out, in some
    casing, with some slip. It is the same for all that is said, so that it tells nothing about the answer."""
    text = text.replace(" 's ", "'s ")
    asks = is_question(text)
    text = SAID_OTHERWISE.sub(lambda found: _synonym(found[0], rng), text)
    roll = rng.random()
    if roll < 0.3:
        text = carried(text, rng) if asks else text
    elif roll < 0.38:
        text = _strewn(text, rng)
    elif roll < 0.43:
        text = _hurried(text, rng)
    if rng.random() < 0.22:
        text = one(CARRIERS.before, rng) + text
    if rng.random() < 0.14:
        mark = text[-1] if text[-1] in "?!." else ""
        text = text.rstrip("?!.") + one(CARRIERS.behind if asks and rng.random() < 0.8 else CARRIERS.calls, rng) + mark
    return typed(text, rng, has_slips=has_slips)


def _synonym(word: str, rng: Random) -> str:
    return rng.choice(TYPING.synonyms[word]) if rng.random() < 0.15 else word


def typed(text: str, rng: Random, *, has_slips: bool = True) -> str:
    """The same words in somebody's casing and punctuation; one in eight texts has a slip."""
    style = rng.random()
    if style < 0.45:
        text = sentence(text)
        text = re.sub(r"\bi\b", "I", text)
    elif style < 0.48:
        text = text.upper()
    elif style < 0.75:
        text = text.lower()
    if rng.random() < 0.4:
        text = text.rstrip("?!.") + rng.choice(["", "", "", ".", "?", "!", " ?", "??", "..."])
    if rng.random() < 0.3:
        text = text.replace("'", "")
    if has_slips and rng.random() < 0.12:
        text = _slip(text, rng)
    return text


def _strewn(text: str, rng: Random) -> str:
    """One or two fillers between words; not beside a number or a sign, where they would be read as a part of it."""
    words = text.split(" ")
    for _ in range(rng.randint(1, 2)):
        gaps = [at for at in range(1, len(words)) if words[at - 1].isalpha() and words[at][:1].isalpha()]
        if gaps:
            words.insert(rng.choice(gaps), rng.choice(TYPING.fillers))
    return " ".join(words)


def _hurried(text: str, rng: Random) -> str:
    """Without some of the small words, if enough others are left."""
    words = text.split(" ")
    kept = [word for word in words if word not in TYPING.dropped or rng.random() < 0.4]
    return " ".join(kept if len(kept) >= 3 else words)


def _slip(text: str, rng: Random) -> str:
    """One letter lost, doubled, swapped with the next, or replaced by a neighbour on the keyboard; never in a number."""
    words = text.split(" ")
    places = [place for place, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not places:
        return text
    place = rng.choice(places)
    word = words[place]
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        word = word[:at] + word[at + 1 :]
    elif kind == 1:
        word = word[:at] + word[at] + word[at:]
    elif kind == 2:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    else:
        near = NEIGHBOURS.find(word[at].lower())
        word = word[:at] + (NEIGHBOURS[near - 1].strip() or word[at]) + word[at + 1 :]
    words[place] = word
    return " ".join(words)
