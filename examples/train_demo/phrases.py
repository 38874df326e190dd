"""Templates with alternatives, and the ways in which people type: casing, missing marks, slips of the fingers.

`expand("[hi|hello] {name}", rng, name="Ada")` chooses one alternative of every bracket, inner ones first. Knows no topic.
The templates themselves stand in `text/`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

import msgspec
from msgspec import Struct

Turn = tuple[str, str]
"""What the user says, and the answer."""

INNERMOST = re.compile(r"\[([^\[\]]*)\]")
FIELD = re.compile(r"\{(\w+)\}")
NEIGHBOURS = "qwertyuiop asdfghjkl zxcvbnm"
ONSETS = (*"bdfgklmnprstvz", "br", "dr", "gr", "kl", "pl", "st", "tr", "th", "sh")
VOWELS = (*"aeiouaeio", "ai", "ea", "ou")
CODAS = ("", "n", "r", "s", "l", "nd", "m", "t")

Texts = tuple[str, ...]
FOLDER = Path(__file__).parent / "text"

T = TypeVar("T", bound=Struct)


def read(name: str, kind: type[T]) -> T:
    """A file of `text/`, each of its keys a field of `kind`."""
    return msgspec.toml.decode((FOLDER / name).read_bytes(), type=kind)


class Typing(Struct, frozen=True, forbid_unknown_fields=True):
    """typing.toml. `fillers` are words that people strew in, `dropped` are those that they leave out in a hurry.
    Words of `together` belong to the next one."""

    fillers: Texts
    together: frozenset[str]
    dropped: frozenset[str]


class Carriers(Struct, frozen=True, forbid_unknown_fields=True):
    """carriers.toml. What people say `before` anything, `behind` anything, and `around` a question."""

    before: Texts
    behind: Texts
    around: Texts


TYPING = read("typing.toml", Typing)
CARRIERS = read("carriers.toml", Carriers)


def expand(template: str, rng: Random, **fields: object) -> str:
    """One of the texts that `template` stands for."""
    text = template
    while "[" in text:
        text = INNERMOST.sub(lambda found: rng.choice(found[1].split("|")), text)
    return FIELD.sub(lambda found: str(fields[found[1]]), text) if fields else text


def one(templates: Sequence[str], rng: Random, **fields: object) -> str:
    """`expand` for one of several templates."""
    return expand(rng.choice(templates), rng, **fields)


def sentence(text: str) -> str:
    """With a capital at its start."""
    return text[:1].upper() + text[1:]


def asked(text: str, rng: Random, *, has_slips: bool = True) -> str:
    """A question as somebody types it: perhaps with words strewn in or left out, in some casing, with some slip."""
    roll = rng.random()
    if roll < 0.16:
        text = _strewn(text, rng)
    elif roll < 0.24:
        text = _hurried(text, rng)
    if text.endswith("?") and rng.random() < 0.1:
        text = one(CARRIERS.around, rng, question=text.rstrip("?! ."))
    elif rng.random() < 0.24:
        text = one(CARRIERS.before, rng) + text
    if rng.random() < 0.14:
        mark = text[-1] if text[-1] in "?!." else ""
        text = text.rstrip("?!.") + one(CARRIERS.behind, rng) + mark
    return typed(text, rng, has_slips=has_slips)


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
        gaps = [at for at in gaps if words[at - 1].lower() not in TYPING.together]
        if gaps:
            words.insert(rng.choice(gaps), rng.choice(TYPING.fillers))
    return " ".join(words)


def _hurried(text: str, rng: Random) -> str:
    """Without some of the small words, if enough others are left."""
    words = text.split(" ")
    kept = [word for word in words if word not in TYPING.dropped or rng.random() < 0.4]
    return " ".join(kept if len(kept) >= 3 else words)


def made_up(rng: Random) -> str:
    """A word that nobody has heard before, such as Torvane."""
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 3))]
    return ("".join(syllables) + rng.choice(CODAS)).capitalize()


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
