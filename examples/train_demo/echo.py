"""Words to be said again. Whoever learns to repeat any words learns to look back, which stories and names need too."""

import re
from random import Random

from msgspec import Struct

from examples.train_demo import stories
from examples.train_demo.phrases import FOLDER, Texts, Turn, made_up, one, read, sentence
from examples.train_demo.stories import TEXT as STORY


class EchoTexts(Struct, frozen=True, forbid_unknown_fields=True):
    """echo.toml."""

    asks: Texts
    again: Texts
    quotes: Texts
    between: Texts


TEXT = read("echo.toml", EchoTexts)
WORDS = STORY.kinds + STORY.traits + STORY.where + STORY.adjectives + STORY.nouns
ALL_WORDS = sorted({word for path in FOLDER.glob("*.toml") for word in re.findall(r"\b[a-z]{3,}\b", path.read_text())})
MAX_WORDS = 8


def word(rng: Random) -> str:
    """One of the stories' words or of any in the text, sometimes a name, a number, or a word that nobody has heard of."""
    roll = rng.random()
    if roll < 0.3:
        return rng.choice(WORDS)
    if roll < 0.75:
        return rng.choice(ALL_WORDS)
    if roll < 0.87:
        return rng.choice(STORY.she + STORY.he)
    return str(rng.randint(0, 999)) if roll < 0.93 else made_up(rng)


def episode(rng: Random) -> list[Turn]:
    """Some words, and perhaps the same once more."""
    words = one(TEXT.between, rng).join(word(rng) for _ in range(rng.choice([1, 1, 1, 2, 2, 3, rng.randint(4, MAX_WORDS)])))
    if rng.random() < 0.3:
        words = f"{stories.article(rng.choice(STORY.traits))} {rng.choice(STORY.kinds)} {rng.choice(STORY.where)}"
    question = one(TEXT.asks, rng, words=one(TEXT.quotes, rng, words=words))
    turns = [(sentence(question) if rng.random() < 0.5 else question, words)]
    if rng.random() < 0.1:
        turns.append((one(TEXT.again, rng), words))
    return turns
