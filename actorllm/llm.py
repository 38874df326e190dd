"""The plain API for scripts: no asyncio in sight.

with LLM("path/to/model") as llm:
    for text in llm.generate(["Once upon a time", "The sea"], SamplingParams(max_tokens=32)):
        print(text)
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from actorllm.engine import Engine, PromptLike
from actorllm.messages import SamplingParams
from actorllm.settings import EngineSettings, ModelSettings


class LLM:
    """An `Engine` on an event loop in a thread of its own; `close` it or use `with`.

    Raises the same errors as `Engine`.
    """

    def __init__(self, model: str | None = None, *, settings: EngineSettings | None = None) -> None:
        if settings is None:
            settings = EngineSettings(model=ModelSettings(path=model))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="actorllm loop", daemon=True)
        self._thread.start()
        try:
            self._engine: Engine = self._call(self._enter(settings))
        except BaseException:
            self._end_loop()
            raise

    def generate(
        self, prompts: PromptLike | Sequence[PromptLike], params: SamplingParams | None = None
    ) -> list[str]:
        """One text per prompt (per choice with `n` > 1, a prompt's choices side by side), all computed together."""
        many: Sequence[Any] = [prompts] if _is_single(prompts) else prompts  # type: ignore[assignment]
        return self._call(self._generate(many, params))

    def close(self) -> None:
        """Stop the engine and its thread. Idempotent."""
        if self._thread.is_alive():
            self._call(self._engine.__aexit__(None, None, None))
            self._end_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    async def _enter(settings: EngineSettings) -> Engine:
        return await Engine(settings).__aenter__()

    async def _generate(self, prompts: Sequence[PromptLike], params: SamplingParams | None) -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._engine.complete(prompt, params)) for prompt in prompts]
        return [text for task in tasks for text in task.result()]

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _is_single(prompts: Any) -> bool:
    """Whether this is one prompt and not a list of them: text, ids or the messages of one conversation."""
    return not isinstance(prompts, list | tuple) or (bool(prompts) and isinstance(prompts[0], int | dict))
