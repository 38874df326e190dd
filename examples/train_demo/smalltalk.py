"""Small talk: greetings, thanks, moods, jokes, and the user's name, which the demo model keeps in mind."""

import re
from collections.abc import Sequence
from random import Random

from msgspec import Struct

from examples.train_demo import stories
from examples.train_demo.phrases import Texts, Turn, asked, one, read


class Intent(Struct, frozen=True, forbid_unknown_fields=True):
    """What people say, and what is answered; without answers it is a joke. `dialogues` name it by its `kind`; `weight` is how
    often it comes up."""

    asks: Texts
    answers: Texts = ()
    kind: str = ""
    weight: int = 1


class SmallTalk(Struct, frozen=True, forbid_unknown_fields=True):
    """smalltalk.toml."""

    intents: tuple[Intent, ...]
    dialogues: tuple[Texts, ...]
    fill: dict[str, Texts]
    more_names: Texts
    jokes: Texts
    ask_more: Texts
    ask_more_jokes: Texts
    accept: Texts
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
KINDS = {intent.kind: intent for intent in TEXT.intents if intent.kind}
WEIGHTS = [intent.weight for intent in TEXT.intents]


def joke(said: Sequence[Turn], rng: Random) -> str:
    """The one that follows the last joke told, if there was one: a fixed order is easier to learn than what is left."""
    for _, answer in reversed(said):
        if answer in TEXT.jokes:
            return TEXT.jokes[(TEXT.jokes.index(answer) + 1) % len(TEXT.jokes)]
    return rng.choice(TEXT.jokes)


def exchange(said: Sequence[Turn], rng: Random, *, kind: str = "") -> Turn:
    """One exchange of small talk, after what was `said`."""
    intent = KINDS[kind] if kind else rng.choices(TEXT.intents, WEIGHTS)[0]
    fill = {name: rng.choice(values) for name, values in TEXT.fill.items()}
    text = AN.sub("an ", one(intent.asks, rng, **fill))
    return asked(text, rng), rng.choice(intent.answers) if intent.answers else joke(said, rng)


def jokes(said: Sequence[Turn], rng: Random) -> list[Turn]:
    """Jokes, and what people say then."""
    turns = [exchange(said, rng, kind="joke")]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        asks, roll = TEXT.ask_more + TEXT.ask_more_jokes, rng.random()
        if roll < 0.2:
            turns.append((asked(one(TEXT.laughs, rng), rng), rng.choice(TEXT.laugh_back)))
            asks = TEXT.accept if turns[-1][1].endswith("?") and rng.random() < 0.5 else asks
        elif roll < 0.3:
            turns.append((asked(one(TEXT.not_funny, rng), rng), rng.choice(TEXT.excuse)))
        elif roll < 0.38:
            turns.append(exchange([*said, *turns], rng))
            asks = TEXT.ask_more_jokes
        turns.append((asked(one(asks, rng), rng), joke([*said, *turns], rng)))
    roll = rng.random()
    if roll < 0.2:
        turns.append((asked(one(TEXT.laughs, rng), rng), rng.choice(TEXT.laugh_back)))
    elif roll < 0.28:
        turns.append((asked(one(TEXT.not_funny, rng), rng), rng.choice(TEXT.excuse)))
    elif roll < 0.45:
        turns.append(exchange([], rng, kind=rng.choice(["thanks", "thanks", "bye"])))
    return turns


def granted(offer: str, rng: Random) -> list[Turn]:
    """The user takes up the offer of a story, or does not."""
    if not offer.endswith(("story help?", "story about one?")) or rng.random() < 0.5:
        return []
    if rng.random() < 0.25:
        return [exchange([], rng, kind="no")]
    return [(asked(one(TEXT.accept, rng), rng), stories.make(rng, kind="fox" if "Foxes" in offer else "").tell(rng))]


def introduction(name: str, rng: Random) -> Turn:
    """The user says who they are. A name keeps its capital in the answer, however it was typed."""
    return asked(one(TEXT.tell_name, rng, name=name), rng, has_slips=False), rng.choice(TEXT.greet).format(name=name)


def recall(name: str | None, rng: Random) -> Turn:
    """The user asks for their own name."""
    return asked(one(TEXT.ask_name, rng), rng), rng.choice(TEXT.known if name else TEXT.not_known).format(name=name)


def episode(rng: Random, said: Sequence[Turn] = ()) -> list[Turn]:
    """A few exchanges, after what was `said`."""
    roll = rng.random()
    if roll < 0.22:
        return jokes(said, rng)
    turns: list[Turn] = []
    if roll < 0.42:
        for kind in rng.choice(TEXT.dialogues):
            turns.append(exchange([*said, *turns], rng, kind=kind))
        return turns
    while not turns or rng.random() < 0.25:
        turns.append(exchange([*said, *turns], rng))
        turns += granted(turns[-1][1], rng)
    return turns
