"""Words to be said again. Whoever learns to repeat any words learns to look back, which stories and names need too."""

from random import Random

from msgspec import Struct

from examples.train_demo import stories
from examples.train_demo.phrases import Texts, Turn, made_up, one, read, sentence
from examples.train_demo.stories import TEXT as STORY


class EchoTexts(Struct, frozen=True, forbid_unknown_fields=True):
    """echo.toml."""

    asks: Texts
    again: Texts


TEXT = read("echo.toml", EchoTexts)
WORDS = STORY.kinds + STORY.traits + STORY.where + STORY.adjectives + STORY.nouns
MAX_WORDS = 8


def word(rng: Random) -> str:
    """Mostly one of the stories' words, sometimes a name, a number, or a word that nobody has heard of."""
    roll = rng.random()
    if roll < 0.75:
        return rng.choice(WORDS)
    if roll < 0.87:
        return rng.choice(STORY.she + STORY.he)
    return str(rng.randint(0, 999)) if roll < 0.93 else made_up(rng)


def episode(rng: Random) -> list[Turn]:
    """Some words, and perhaps the same once more."""
    words = " ".join(word(rng) for _ in range(rng.randint(1, MAX_WORDS)))
    if rng.random() < 0.3:
        words = f"{stories.article(rng.choice(STORY.traits))} {rng.choice(STORY.kinds)} {rng.choice(STORY.where)}"
    question = one(TEXT.asks, rng, words=words)
    turns = [(sentence(question) if rng.random() < 0.5 else question, words)]
    if rng.random() < 0.1:
        turns.append((one(TEXT.again, rng), words))
    return turns
