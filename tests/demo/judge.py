"""Asks the held-out questions and dialogues, and judges the answers by the criteria that stand beside them.

`python -m tests.demo.judge [MODEL_FOLDER [QUESTIONS.json]]` prints every greedy answer, the wrong ones of five sampled runs, and the
scores; without a folder the demo model is asked. development.json holds more questions, by which a training's options may be
chosen. A question is right if its answer meets its criteria; a dialogue, held on the
model's own earlier answers, is right if every turn is.
"""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from actorllm import Engine, EngineSettings, SamplingParams
from actorllm.settings import ExecutionSettings, ModelSettings

MAX_TOKENS = 200
NOT_NAMES = {"It", "That", "This", "The", "She", "He", "They", "In", "On", "By", "At", "Under", "Above", "Yes", "No", "I", "You", "And", "Sorry"}


class Ask(Struct, frozen=True, forbid_unknown_fields=True):
    """A question and what its answer must be like.

    all: patterns that must be found, none: patterns that must not (both without regard to case); min_len: characters. The
    others compare with the answer of an earlier turn: recalls: some name (a word with a capital) of it occurs again;
    echoes: three words in a row occur again; shorter_than: at most two thirds as long; differs_from: not the same.
    """

    ask: str
    all: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    min_len: int = 1
    recalls: int | None = None
    echoes: int | None = None
    shorter_than: int | None = None
    differs_from: int | None = None

    def accepts(self, answer: str, earlier: Sequence[str]) -> bool:
        """Whether `answer` is right after the answers `earlier`."""
        return (
            len(answer) >= self.min_len
            and all(re.search(pattern, answer, re.IGNORECASE) for pattern in self.all)
            and not any(re.search(pattern, answer, re.IGNORECASE) for pattern in self.none)
            and (self.recalls is None or bool(names(answer) & names(earlier[self.recalls])))
            and (self.echoes is None or bool(triples(answer) & triples(earlier[self.echoes])))
            and (self.shorter_than is None or 3 * len(answer) <= 2 * len(earlier[self.shorter_than]))
            and (self.differs_from is None or answer != earlier[self.differs_from])
        )


class HeldOut(Struct, frozen=True, forbid_unknown_fields=True):
    """held_out.json, development.json."""

    questions: tuple[Ask, ...]
    dialogues: tuple[tuple[Ask, ...], ...]

    @property
    def conversations(self) -> tuple[tuple[Ask, ...], ...]:
        return (*((question,) for question in self.questions), *self.dialogues)


class Verdict(Struct, frozen=True):
    """One answer and whether it was right."""

    ask: str
    answer: str
    is_right: bool


class Score(Struct, frozen=True):
    """How many were right, and of how many."""

    questions: tuple[int, int]
    turns: tuple[int, int]
    dialogues: tuple[int, int]

    @classmethod
    def of(cls, conversations: Sequence[Sequence[Verdict]]) -> "Score":
        """A conversation of one turn is a question, others are dialogues."""
        singles = [turns[0].is_right for turns in conversations if len(turns) == 1]
        dialogues = [[turn.is_right for turn in turns] for turns in conversations if len(turns) > 1]
        turns = [is_right for dialogue in dialogues for is_right in dialogue]
        whole = [all(dialogue) for dialogue in dialogues]
        return cls(*((sum(each), len(each)) for each in (singles, turns, whole)))

    def __str__(self) -> str:
        parts = {"questions": self.questions, "turns of dialogues": self.turns, "whole dialogues": self.dialogues}
        return ", ".join(f"{name} {right}/{total}" for name, (right, total) in parts.items())


def read_held_out(path: Path = Path(__file__).parent / "held_out.json") -> HeldOut:
    return msgspec.json.decode(path.read_bytes(), type=HeldOut)


def names(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Z][a-z]+\b", text)) - NOT_NAMES


def triples(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:], words[2:]))


async def hold(engine: Engine, asks: Sequence[Ask], params: SamplingParams) -> list[Verdict]:
    """One conversation."""
    messages: list[dict[str, str]] = []
    answers: list[str] = []
    verdicts = []
    for ask in asks:
        messages.append({"role": "user", "content": ask.ask})
        [answer] = await engine.complete(messages, params)
        verdicts.append(Verdict(ask.ask, answer, ask.accepts(answer, answers)))
        answers.append(answer)
        messages.append({"role": "assistant", "content": answer})
    return verdicts


async def judge(engine: Engine, held_out: HeldOut, *, temperature: float, seed: int = 0) -> list[list[Verdict]]:
    """A list of verdicts per conversation, all held side by side; everything but the temperature is the model's default."""
    params = msgspec.structs.replace(engine.default_params, temperature=temperature, seed=seed, max_tokens=MAX_TOKENS)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(hold(engine, asks, params)) for asks in held_out.conversations]
    return [task.result() for task in tasks]


def settings(path: str | None = None) -> EngineSettings:
    """Greedy answers, and sampled ones with a seed, do not depend on the machine but for rounding."""
    return EngineSettings(model=ModelSettings(path=path, dtype="float32"), execution=ExecutionSettings(threads=1))


async def main(path: str | None, held_out: HeldOut, *, num_seeds: int) -> None:
    """Print what the module says."""
    async with Engine(settings(path)) as engine:
        for temperature, seed in [(0.0, 0), *((0.7, seed) for seed in range(num_seeds))]:
            verdicts = await judge(engine, held_out, temperature=temperature, seed=seed)
            for verdict in [each for conversation in verdicts for each in conversation]:
                if not verdict.is_right or temperature == 0.0:
                    print(f"{'  ' if verdict.is_right else 'X '}{verdict.ask}\n      {verdict.answer}")
            print(f"== temperature {temperature}, seed {seed}: {Score.of(verdicts)}")


if __name__ == "__main__":
    held = read_held_out(Path(sys.argv[2])) if len(sys.argv) > 2 else read_held_out()
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None, held, num_seeds=5))
