"""Templates with alternatives: `expand("[hi|hello] {name}", rng, name="Ada")` chooses one alternative of every bracket, inner ones
first. The templates themselves stand in `text/`. Knows no topic.
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
ONSETS = (*"bdfgklmnprstvz", "br", "dr", "gr", "kl", "pl", "st", "tr", "th", "sh")
VOWELS = (*"aeiouaeio", "ai", "ea", "ou")
CODAS = ("", "n", "r", "s", "l", "nd", "m", "t")

Texts = tuple[str, ...]
FOLDER = Path(__file__).parent / "text"

T = TypeVar("T", bound=Struct)


def read(name: str, kind: type[T]) -> T:
    """A file of `text/`, each of its keys a field of `kind`."""
    return msgspec.toml.decode((FOLDER / name).read_bytes(), type=kind)


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


def made_up(rng: Random) -> str:
    """A word that nobody has heard before, such as Torvane."""
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 3))]
    return ("".join(syllables) + rng.choice(CODAS)).capitalize()
