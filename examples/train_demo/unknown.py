"""What the demo model does not know: the world, the news, advice, other people's work. It says so politely, and what it can do.

The questions are put together from many frames and many nouns, so that the refusal hangs on no single word.
"""

from random import Random

from msgspec import Struct

from examples.train_demo.phrases import Texts, Turn, asked, made_up, one, read


class UnknownTexts(Struct, frozen=True, forbid_unknown_fields=True):
    """unknown.toml: nouns of many sorts, and the questions around them; `often` are the plainest."""

    countries: Texts
    cities: Texts
    people: Texts
    things: Texts
    animals: Texts
    languages: Texts
    codes: Texts
    ills: Texts
    foods: Texts
    phrases: Texts
    dates: Texts
    often: Texts
    asks: Texts
    answers: Texts
    ask_again: Texts
    again: Texts
    gibberish: Texts
    unclear: Texts


TEXT = read("unknown.toml", UnknownTexts)


def fields(rng: Random) -> dict[str, str]:
    """One noun of every sort; sometimes one that nobody has heard of, so that the refusal hangs on the question."""
    nouns = {
        "country": rng.choice(TEXT.countries),
        "city": rng.choice(TEXT.cities),
        "place": rng.choice(TEXT.countries + TEXT.cities),
        "person": rng.choice(TEXT.people),
        "thing": rng.choice(TEXT.things),
        "animal": rng.choice(TEXT.animals),
        "language": rng.choice(TEXT.languages),
        "code": rng.choice(TEXT.codes),
        "ill": rng.choice(TEXT.ills),
        "food": rng.choice(TEXT.foods),
        "phrase": rng.choice(TEXT.phrases),
        "date": rng.choice(TEXT.dates),
    }
    return {sort: made_up(rng) if rng.random() < 0.2 else noun for sort, noun in nouns.items()}


def episode(rng: Random) -> list[Turn]:
    """A question that has to be declined, perhaps asked again."""
    if rng.random() < 0.06:
        text = " ".join(rng.choices(TEXT.gibberish, k=rng.randint(1, 4)))
        return [(asked(text, rng), rng.choice(TEXT.unclear))]
    asks = TEXT.often if rng.random() < 0.4 else TEXT.asks
    turns = [(asked(one(asks, rng, **fields(rng)), rng), rng.choice(TEXT.answers))]
    if rng.random() < 0.2:
        turns.append((asked(one(TEXT.ask_again, rng, **fields(rng)), rng), rng.choice(TEXT.again)))
    return turns
