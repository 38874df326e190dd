"""Stream one answer from Python: `python examples/stream_tokens.py [MODEL] [QUESTION]`; without a model the demo model answers."""

import asyncio
import sys

from actorllm import Engine, EngineSettings, SamplingParams
from actorllm.settings import ModelSettings


async def main(path: str | None, question: str) -> None:
    """Print the pieces as they come."""
    async with Engine(EngineSettings(model=ModelSettings(path=path))) as engine:
        async for piece in engine.generate([{"role": "user", "content": question}], SamplingParams(temperature=0.0)):
            print(piece.text, end="", flush=True)
    print()


if __name__ == "__main__":
    arguments = [*sys.argv[1:], *[""] * 2]
    asyncio.run(main(arguments[0] or None, arguments[1] or "How do I start the server?"))
