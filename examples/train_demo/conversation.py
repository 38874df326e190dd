"""Whole conversations: episodes of all topics one after the other, sometimes under a system message, sometimes with the
user's name told at one turn and asked for at a later one. `python -m examples.train_demo.conversation` prints some."""

from collections.abc import Sequence
from random import Random

from examples.train_demo import about, arithmetic, echo, smalltalk, stories, unknown
from examples.train_demo.phrases import Turn, asked, expand, one

Message = dict[str, str]

SYSTEM = (
    "You are a [helpful|friendly|kind|small|polite] [assistant|model|chat model|chatbot].",
    "Answer [briefly|in English|politely|the user's questions].",
    "You are [the demo model of ActorLLM|ActorLLM's demo model|an AI assistant].",
    "You are a helpful assistant. [Be brief.|Answer in English.|Be kind.|Today is Monday.]",
    "[Be|Please be] [nice|helpful|brief|polite] [to the user|in your answers].",
)
TOPICS = ("about", "arithmetic", "smalltalk", "stories", "unknown", "echo")
WEIGHTS = (30, 27, 27, 16, 11, 12)
LONG_SHARE = 0.015
"""So many conversations are long, so that positions far into the context are learned too."""
MAX_REPEATED = 160
"""No longer an answer is asked for again, in letters."""


def meanwhile(rng: Random) -> list[Turn]:
    """Something short that is no story."""
    return rng.choice([about, arithmetic, smalltalk]).episode(rng)[:1]


def episode(rng: Random, said: Sequence[Turn]) -> list[Turn]:
    """Some turns on one subject, after what was `said`."""
    topic = rng.choices(TOPICS, WEIGHTS)[0]
    if topic == "about":
        return about.episode(rng)
    if topic == "arithmetic":
        return arithmetic.episode(rng)
    if topic == "smalltalk":
        return smalltalk.episode(rng, said)
    if topic == "stories":
        return stories.episode(rng) if rng.random() < 0.85 else stories.interrupted(rng, meanwhile(rng))
    return unknown.episode(rng) if topic == "unknown" else echo.episode(rng)


def turns(rng: Random) -> list[Turn]:
    """A conversation's questions and answers."""
    name = None
    said: list[Turn] = []
    is_long = rng.random() < LONG_SHARE
    if rng.random() < 0.22:
        name = rng.choice(smalltalk.NAMES)
        said.append(smalltalk.introduction(name, rng))
    while True:
        if name is None or rng.random() < 0.85:
            found = episode(rng, said)
            said += found[:1] if rng.random() < (0.5 if name else 0.1) else found
            if len(said[-1][1]) < MAX_REPEATED and rng.random() < 0.04:
                said.append((asked(one(about.FRAMES.repeat, rng), rng), said[-1][1]))
        if rng.random() < (0.45 if name else 0.015):
            said.append(smalltalk.recall(name, rng))
        if rng.random() < (0.05 if is_long else 0.68):
            break
    if rng.random() < 0.05:
        said.append(smalltalk.exchange(said, rng, kind=rng.choice(["thanks", "bye"])))
    return said


def conversation(rng: Random) -> list[Message]:
    """The messages of one conversation, as the chat template takes them."""
    messages = [{"role": "system", "content": expand(rng.choice(SYSTEM), rng)}] if rng.random() < 0.12 else []
    for question, answer in turns(rng):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


if __name__ == "__main__":
    random = Random()
    for _ in range(10):
        print("\n".join(f"{message['role']:>9}: {message['content']}" for message in conversation(random)), "\n")
