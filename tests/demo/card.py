"""What the demo model's card and README say of its answers, written from its answers: `make demo-card`.

The card gets a table of scores, README a transcript: greedy answers to the first question of each subject of development.json, unedited.
"""

import asyncio
from pathlib import Path

import msgspec

from actorllm import Engine
from tests.demo.judge import MAX_TOKENS, Score, judge, read_held_out, settings

REPOSITORY = Path(__file__).parents[2]
CARD, README = REPOSITORY / "actorllm" / "demo" / "README.md", REPOSITORY / "README.md"
SCORES = "<!-- scores: written by `make demo-card` -->\n", "<!-- end of scores -->"
TRANSCRIPT = "<!-- transcript: written by `make demo-card` -->\n", "<!-- end of transcript -->"
NUM_SEEDS = 5
DEVELOPMENT = Path(__file__).parent / "development.json"
QUESTIONS_A_SUBJECT = 15


async def scores(engine: Engine) -> str:
    """A table with the greedy run and the least and the greatest of the sampled ones."""
    held_out = read_held_out()
    greedy = Score.of(await judge(engine, held_out, temperature=0.0))
    sampled = [Score.of(await judge(engine, held_out, temperature=0.7, seed=seed)) for seed in range(NUM_SEEDS)]
    lines = [f"| right of held-out | greedy | temperature 0.7, {NUM_SEEDS} seeds |", "|---|---|---|"]
    for name in ("questions", "turns", "dialogues"):
        right, total = getattr(greedy, name)
        counts = [getattr(score, name)[0] for score in sampled]
        lines.append(f"| {total} {name} | {right} | {min(counts)} to {max(counts)} |")
    return "\n".join(lines) + "\n"


async def transcript(engine: Engine) -> str:
    """One conversation of the first question of each subject, as a block of Markdown."""
    turns = [question.ask for question in read_held_out(DEVELOPMENT).questions[::QUESTIONS_A_SUBJECT]]
    params = msgspec.structs.replace(engine.default_params, temperature=0.0, max_tokens=MAX_TOKENS)
    messages, lines = [], []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        [answer] = await engine.complete(messages, params)
        messages.append({"role": "assistant", "content": answer})
        lines += [f"> **{turn}**", ">", f"> {answer}", ">"]
    return "\n".join(lines[:-1]) + "\n"


def between(path: Path, marks: tuple[str, str], text: str) -> None:
    """Put `text` between the two marks of a file."""
    before, _, rest = path.read_text().partition(marks[0])
    _, _, after = rest.partition(marks[1])
    path.write_text(before + marks[0] + text + marks[1] + after)


async def main() -> None:
    """Write both."""
    async with Engine(settings()) as engine:
        between(CARD, SCORES, await scores(engine))
        between(README, TRANSCRIPT, await transcript(engine))


if __name__ == "__main__":
    asyncio.run(main())
