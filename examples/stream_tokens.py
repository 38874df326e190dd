"""Stream one completion from Python: `python examples/stream_tokens.py [MODEL_DIRECTORY] [PROMPT]`.

Without a directory it runs the echo model, which only shows that everything works.
"""

import asyncio
import sys

from actorllm import Engine, EngineSettings, SamplingParams
from actorllm.settings import ModelSettings


async def main(path: str | None, prompt: str) -> None:
    """Print the pieces as they come."""
    async with Engine(EngineSettings(model=ModelSettings(path=path))) as engine:
        async for piece in engine.generate(prompt, SamplingParams(max_tokens=48, temperature=0.0)):
            print(piece.text, end="", flush=True)
    print()


if __name__ == "__main__":
    arguments = [*sys.argv[1:], *[""] * 2]
    asyncio.run(main(arguments[0] or None, arguments[1] or "the quick"))
