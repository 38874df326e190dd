"""Short stories put together from who, where, what and with whom; and questions about the story just told.

Everything that is asked later (name, place, friend, thing, a shorter version) is in the story's own words.
"""

from dataclasses import dataclass
from random import Random

from msgspec import Struct

from examples.train_demo.phrases import Texts, Turn, asked, expand, one, read, sentence


class StoryTexts(Struct, frozen=True, forbid_unknown_fields=True):
    """stories.toml: words and pieces of sentences, requests, and questions afterwards (`ask_...`)."""

    kinds: Texts
    she: Texts
    he: Texts
    traits: Texts
    places: Texts
    where: Texts
    adjectives: Texts
    nouns: Texts
    open: Texts
    want: Texts
    day: Texts
    turns: Texts
    met: Texts
    help: Texts
    deeds: Texts
    ends: Texts
    requests: Texts
    any: Texts
    who: Texts
    named: Texts
    placed: Texts
    him_only: Texts
    her_only: Texts
    placed_on: Texts
    placed_at: Texts
    ask_name: Texts
    ask_kind: Texts
    ask_place: Texts
    ask_thing: Texts
    ask_friend: Texts
    ask_friend_name: Texts
    ask_friend_kind: Texts
    ask_trait: Texts
    ask_wish: Texts
    ask_day: Texts
    ask_deed: Texts
    ask_title: Texts
    ask_short: Texts
    ask_moral: Texts
    morals: Texts
    ask_more: Texts
    ask_other: Texts
    ask_end: Texts
    back: Texts


TEXT = read("stories.toml", StoryTexts)


def article(word: str) -> str:
    """With "a" or "an"."""
    return ("an " if word[0] in "aeiou" else "a ") + word


THINGS = tuple(f"{article(adjective)} {noun}" for adjective in TEXT.adjectives for noun in TEXT.nouns)
NUM_FRIENDS = 70  # the animals at the beginning of the list of kinds, and some more


@dataclass(frozen=True)
class Story:
    """What a story is made of."""

    kind: str
    name: str
    is_female: bool
    trait: str
    place: str
    thing: str
    friend: str
    friend_name: str
    end: str
    wish: str
    day: str
    deed: str

    @property
    def fields(self) -> dict[str, str]:
        """What templates may name."""
        she, her, her_object = ("she", "her", "her") if self.is_female else ("he", "his", "him")
        words = {"kind": self.kind, "name": self.name, "trait": self.trait}
        words |= {"friend": self.friend, "friend_name": self.friend_name}
        return words | {"she": she, "her": her, "her_object": her_object}

    def tell(self, rng: Random) -> str:
        """The story in six sentences."""
        she = "She" if self.is_female else "He"
        lived = rng.choice(["there lived", "there was"])
        met = one(TEXT.met, rng, friend=f"{self.friend_name} the {self.friend}", name=self.name)
        return " ".join([
            f"{rng.choice(TEXT.open)} {lived} {article(self.trait)} {self.kind} named {self.name} {self.place}.",
            f"{she} {self.wish}.",
            f"{self.day} {self.name} found {self.thing}, {rng.choice(TEXT.turns)}.",
            met,
            f"{rng.choice(TEXT.help)} {self.deed}.",
            self.end,
        ])  # fmt: skip

    def short(self, rng: Random) -> str:
        """The story in one sentence."""
        found = f"{self.name} the {self.kind} found {self.thing}, and {self.friend_name} the {self.friend} helped."
        return expand(f"[In short: |]{found}", rng)


def make(rng: Random, *, kind: str = "", name: str = "", trait: str = "", place: str = "") -> Story:
    """A story in which what was wished for is kept. The friend's name does not even begin as the hero's does."""
    kind = kind or rng.choice(TEXT.kinds)
    if not name:
        name = rng.choice(TEXT.she if kind in TEXT.her_only else TEXT.he if kind in TEXT.him_only else TEXT.she + TEXT.he)
    friend_name = rng.choice([each for each in TEXT.she + TEXT.he if each[0] != name[0]])
    return Story(
        kind=kind,
        name=name,
        is_female=name in TEXT.she,
        trait=trait or rng.choice(TEXT.traits),
        place=place or one(TEXT.places, rng),
        thing=rng.choice(THINGS),
        friend=rng.choice([each for each in TEXT.kinds[:NUM_FRIENDS] if each != kind]),
        friend_name=friend_name,
        end=rng.choice(TEXT.ends).format(name=name),
        wish=rng.choice(TEXT.want),
        day=rng.choice(TEXT.day),
        deed=rng.choice(TEXT.deeds),
    )


def located(noun: str, rng: Random, *, preposition: str = "") -> str:
    """ "hill" -> "on the old hill"."""
    natural = "on" if noun in TEXT.placed_on else "at" if noun in TEXT.placed_at else "in"
    adjective = rng.choice(["old", "quiet", "small", "great"])
    return f"{preposition or natural} {rng.choice([article(adjective), f'the {adjective}'])} {noun}"


def first_request(rng: Random) -> tuple[str, Story]:
    """A request, and the story that grants it."""
    roll = rng.random()
    if roll < 0.2:
        return one(TEXT.any, rng), make(rng)
    kind, trait, place, where = rng.choice(TEXT.kinds), rng.choice(TEXT.traits), "", ""
    if rng.random() < 0.2:
        noun = rng.choice(TEXT.where)
        where = one(TEXT.placed, rng, place=noun)
        place = located(noun, rng)
    if roll < 0.4:
        name = rng.choice(TEXT.she + TEXT.he)
        who = one(TEXT.named, rng, kind=kind, trait=trait, name=name)
    elif roll < 0.45 and not where:
        request = one(TEXT.any, rng).rstrip("?")
        noun = rng.choice(TEXT.where)
        return request + one(TEXT.placed, rng, place=noun), make(rng, place=located(noun, rng, preposition="in"))
    else:
        name = ""
        who = one(TEXT.who, rng, kind=kind, trait=trait)
    request = one(TEXT.requests, rng, who=who).rstrip("?") + where
    return request, make(rng, kind=kind, name=name, trait=trait if trait in who else "", place=place)


def question(story: Story, rng: Random, *, is_later: bool = False) -> Turn:
    """A question about the story that was told, and its answer; `is_later` if they spoke of something else meanwhile."""
    who, friend = f"{story.name} the {story.kind}.", f"{story.friend_name} the {story.friend}"
    name = (
        TEXT.ask_name,
        [
            f"[It was |That was |]{story.name}, {article(story.trait)} {story.kind}.",
            f"The {story.kind}'s name was {story.name}.",
            who,
        ],
    )
    place = [f"[It happened |That was |]{story.place}.", f"{story.name} lived {story.place}."]
    thing = [f"{story.name} found {story.thing}.", f"It was {story.thing}."]
    helped = [f"It was {friend}.", f"{friend} helped {story.name}."]
    asks, answers = rng.choice([
        name,
        name,
        (TEXT.ask_kind, [f"[{story.name} was |]{article(story.kind)}."]),
        (TEXT.ask_kind, [f"[{story.name} was |]{article(story.kind)}."]),
        (TEXT.ask_place, place),
        (TEXT.ask_place, place),
        (TEXT.ask_place, place),
        (TEXT.ask_thing, thing),
        (TEXT.ask_thing, thing),
        (TEXT.ask_friend, helped),
        (TEXT.ask_friend, helped),
        (TEXT.ask_friend_name, [f"The {story.friend}'s name was {story.friend_name}.", f"It was {friend}."]),
        (TEXT.ask_friend_name, [f"The {story.friend}'s name was {story.friend_name}.", f"It was {friend}."]),
        (TEXT.ask_friend_kind, [f"{story.friend_name} was {article(story.friend)}."]),
        (TEXT.ask_short, [story.short(rng)]),
        (TEXT.ask_short, [story.short(rng)]),
        (TEXT.ask_trait, [f"{story.name} was {story.trait}.", f"{story.name} was {article(story.trait)} {story.kind}."]),
        (TEXT.ask_wish, [f"{story.name} {story.wish}."]),
        (TEXT.ask_day, [f"{story.day}.", f"{story.day} {story.name} found {story.thing}."]),
        (TEXT.ask_deed, [f"They {story.deed}.", f"Together they {story.deed}."]),
        (TEXT.ask_title, [f"{story.name} and the {story.thing.partition(' ')[2]}."]),
        (TEXT.ask_moral, TEXT.morals),
        (TEXT.ask_end, [story.end]),
        (TEXT.ask_end, [story.end]),
    ])  # fmt: skip
    text = one(asks, rng, **story.fields)
    return asked(one(TEXT.back, rng) + text if is_later else text, rng), sentence(one(answers, rng))


def interrupted(rng: Random, meanwhile: list[Turn]) -> list[Turn]:
    """A story, something else, and a question about the story."""
    request, story = first_request(rng)
    return [(asked(request, rng), story.tell(rng)), *meanwhile, question(story, rng, is_later=True)]


def episode(rng: Random) -> list[Turn]:
    """A story, and perhaps questions about it or another one."""
    request, story = first_request(rng)
    turns = [(asked(request, rng), story.tell(rng))]
    while len(turns) < 6 and rng.random() < 0.72:
        roll = rng.random()
        if roll < 0.84:
            turns.append(question(story, rng))
        elif roll < 0.92:
            story = make(rng)
            turns.append((asked(one(TEXT.ask_more, rng), rng), story.tell(rng)))
        else:
            story = make(rng, kind=rng.choice(TEXT.kinds))
            turns.append((asked(one(TEXT.ask_other, rng, kind=story.kind), rng), story.tell(rng)))
    return turns
