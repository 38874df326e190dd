"""How people ask about ActorLLM: frames around what they want to do, around things, and whole questions.

What is true stands in `text/facts.toml`, the frames in `text/questions.toml`.
"""

from collections.abc import Mapping
from random import Random

from msgspec import Struct

from examples.train_demo.phrases import asked
from examples.train_demo.syntax import gerund
from examples.train_demo.templates import Texts, Turn, expand, one, read, sentence


class Frames(Struct, frozen=True, forbid_unknown_fields=True):
    """questions.toml. `it` names the server; `act` and `acting` ask of something done, `thing` of something, `flag` of a setting."""

    it: str
    act: Texts
    acting: Texts
    thing: Texts
    flag: Texts
    repeat: Texts
    doubt: Texts
    change: Texts


FRAMES = read("questions.toml", Frames)


def framed(
    words: Mapping[str, str], rng: Random, *, acts: Texts = (), things: Texts = (), flags: Texts = (), asks: Texts = ()
) -> str:
    """A question that is asked as it stands, or one built around something done, a thing, or a setting; of whatever subject.
    `words` fill what the templates name."""
    kinds = [("act", acts)] * 2 + [("acting", acts), ("thing", things), ("thing", things), ("flag", flags), ("flag", flags)]
    kind, values = rng.choice([kind for kind in [*kinds, *[("", asks)] * 3] if kind[1]])
    it = expand(FRAMES.it, rng)
    text = expand(rng.choice(values), rng, it=it, **words)
    if not kind:
        return text
    return one(getattr(FRAMES, kind), rng, it=it, what=gerund(text) if kind == "acting" else text)


class Follow(Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked after a topic's answer and makes sense only there."""

    asks: Texts
    answers: Texts


class Topic(Struct, frozen=True, forbid_unknown_fields=True):
    """One subject: what may be done (`acts`), explained (`things`), set by a flag (`flags`), whole questions, and answers."""

    answers: Texts
    acts: Texts = ()
    things: Texts = ()
    flags: Texts = ()
    asks: Texts = ()
    follow: tuple[Follow, ...] = ()

    def question(self, rng: Random) -> str:
        """One way to ask."""
        return asked(framed({}, rng, acts=self.acts, things=self.things, flags=self.flags, asks=self.asks), rng)

    def answer(self, rng: Random) -> str:
        return sentence(one(self.answers, rng))


class Facts(Struct, frozen=True, forbid_unknown_fields=True):
    """facts.toml."""

    topics: tuple[Topic, ...]


FACTS = read("facts.toml", Facts)


def episode(rng: Random) -> list[Turn]:
    """Some questions about ActorLLM in a row, a few of which take up the last answer."""
    topic = rng.choice(FACTS.topics)
    turns = [(topic.question(rng), topic.answer(rng))]
    while len(turns) < 4 and rng.random() < 0.4:
        roll = rng.random()
        if roll < 0.07:
            turns.append((asked(one(FRAMES.repeat, rng), rng), turns[-1][1]))
        elif roll < 0.13:
            turns.append((asked(one(FRAMES.doubt, rng), rng), turns[-1][1]))
        elif roll < 0.23 and topic.flags:
            turns.append((asked(one(FRAMES.change, rng), rng), topic.answer(rng)))
        elif roll < 0.45 and topic.follow:
            follow = rng.choice(topic.follow)
            turns.append((asked(one(follow.asks, rng), rng), one(follow.answers, rng)))
        else:
            topic = rng.choice(FACTS.topics)
            turns.append((topic.question(rng), topic.answer(rng)))
    return turns
