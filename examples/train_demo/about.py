"""How people ask about ActorLLM: frames around what they want to do, around things, and whole questions.

What is true stands in `text/facts.toml`, the frames in `text/questions.toml`.
"""

from random import Random

from msgspec import Struct

from examples.train_demo.phrases import Texts, Turn, asked, expand, one, read, sentence


class Frames(Struct, frozen=True, forbid_unknown_fields=True):
    """questions.toml. `it` names the server; `act` is asked of something done, `thing` of something, `flag` of a setting."""

    it: str
    act: Texts
    thing: Texts
    flag: Texts
    repeat: Texts


FRAMES = read("questions.toml", Frames)


class Topic(Struct, frozen=True, forbid_unknown_fields=True):
    """One subject: what may be done (`acts`), explained (`things`), set by a flag (`flags`), whole questions, and answers.
    `often` are the plainest questions, as many as all others together; `weight` is how often the subject comes up."""

    answers: Texts
    acts: Texts = ()
    things: Texts = ()
    flags: Texts = ()
    asks: Texts = ()
    often: Texts = ()
    weight: int = 1

    def question(self, rng: Random) -> str:
        """One way to ask."""
        if self.often and rng.random() < 0.5:
            return asked(one(self.often, rng, it=expand(FRAMES.it, rng)), rng)
        kinds = [(FRAMES.act, "act", self.acts)] * 2 + [(FRAMES.thing, "thing", self.things)] * 2
        kinds += [(FRAMES.flag, "what", self.flags)] * 2 + [(self.asks, "", self.asks)] * 3
        frames, field, values = rng.choice([kind for kind in kinds if kind[2]])
        fields = {field: expand(rng.choice(values), rng, it=expand(FRAMES.it, rng))} if field else {}
        return asked(one(frames, rng, it=expand(FRAMES.it, rng), **fields), rng)

    def answer(self, rng: Random) -> str:
        return sentence(one(self.answers, rng))


class Facts(Struct, frozen=True, forbid_unknown_fields=True):
    """facts.toml."""

    topics: tuple[Topic, ...]


FACTS = read("facts.toml", Facts)


def episode(rng: Random) -> list[Turn]:
    """Some questions about ActorLLM in a row."""
    turns: list[Turn] = []
    while not turns or (len(turns) < 4 and rng.random() < 0.4):
        if turns and rng.random() < 0.07:
            turns.append((asked(one(FRAMES.repeat, rng), rng), turns[-1][1]))
        else:
            topic = rng.choices(FACTS.topics, [topic.weight for topic in FACTS.topics])[0]
            turns.append((topic.question(rng), topic.answer(rng)))
    return turns
