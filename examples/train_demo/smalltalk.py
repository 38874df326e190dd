"""Small talk: greetings, thanks, moods, jokes, and the user's name, which the demo model keeps in mind."""

import re
from random import Random

from msgspec import Struct

from examples.train_demo import stories
from examples.train_demo.phrases import Texts, Turn, asked, one, read


class Intent(Struct, frozen=True, forbid_unknown_fields=True):
    """What people say, and what is answered; without answers it is a joke."""

    asks: Texts
    answers: Texts = ()


class SmallTalk(Struct, frozen=True, forbid_unknown_fields=True):
    """smalltalk.toml."""

    intents: tuple[Intent, ...]
    fill: dict[str, Texts]
    more_names: Texts
    jokes: Texts
    ask_more: Texts
    laughs: Texts
    laugh_back: Texts
    not_funny: Texts
    excuse: Texts
    tell_name: Texts
    greet: Texts
    ask_name: Texts
    known: Texts
    not_known: Texts


TEXT = read("smalltalk.toml", SmallTalk)
NAMES = stories.TEXT.she + stories.TEXT.he + TEXT.more_names
AN = re.compile(r"\ba (?=[aeio]|un)")
"""Before a vowel, where "an" belongs."""
[JOKE] = [intent for intent in TEXT.intents if not intent.answers]


def exchange(rng: Random) -> Turn:
    """One exchange of small talk."""
    intent = rng.choice(TEXT.intents)
    fill = {name: rng.choice(values) for name, values in TEXT.fill.items()}
    said = AN.sub("an ", one(intent.asks, rng, **fill))
    return asked(said, rng), rng.choice(intent.answers or TEXT.jokes)


def jokes(rng: Random) -> list[Turn]:
    """A joke, and what people say then."""
    told = rng.sample(TEXT.jokes, 4)
    turns = [(asked(one(JOKE.asks, rng), rng), told.pop())]
    while told and rng.random() < 0.6:
        roll = rng.random()
        if roll < 0.6:
            turns.append((asked(one(TEXT.ask_more, rng), rng), told.pop()))
        elif roll < 0.85:
            turns.append((asked(one(TEXT.laughs, rng), rng), rng.choice(TEXT.laugh_back)))
        else:
            turns.append((asked(one(TEXT.not_funny, rng), rng), rng.choice(TEXT.excuse)))
    return turns


def introduction(name: str, rng: Random) -> Turn:
    """The user says who they are. A name keeps its capital in the answer, however it was typed."""
    return asked(one(TEXT.tell_name, rng, name=name), rng, has_slips=False), rng.choice(TEXT.greet).format(name=name)


def recall(name: str | None, rng: Random) -> Turn:
    """The user asks for their own name."""
    return asked(one(TEXT.ask_name, rng), rng), rng.choice(TEXT.known if name else TEXT.not_known).format(name=name)


def episode(rng: Random) -> list[Turn]:
    """A few exchanges."""
    if rng.random() < 0.15:
        return jokes(rng)
    turns = [exchange(rng)]
    while rng.random() < 0.3:
        turns.append(exchange(rng))
    return turns
