"""What the runtime's tests share: both ways of passing messages, and an observer that remembers."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from actorllm.runtime.observer import Observer


class Recorder(Observer):
    """Every fact, in order, as a tuple that begins with its kind."""

    def __init__(self) -> None:
        self.facts: list[tuple] = []

    def of(self, kind: str) -> list[tuple]:
        """The facts of one kind, without the kind."""
        return [fact[1:] for fact in self.facts if fact[0] == kind]

    def handled(self, name: str, message_type: type, seconds: float) -> None:
        assert seconds >= 0.0
        self.facts.append(("handled", name, message_type))

    def failed(self, name: str, error: BaseException) -> None:
        self.facts.append(("failed", name, type(error)))

    def expired(self, name: str) -> None:
        self.facts.append(("expired", name))

    def restarted(self, name: str, error: BaseException) -> None:
        self.facts.append(("restarted", name, type(error)))

    def stopped(self, name: str, error: BaseException | None) -> None:
        self.facts.append(("stopped", name, None if error is None else type(error)))


@pytest.fixture(params=[True, False], ids=["encoded", "plain"])
def encode(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    """Nothing that a test started lives on behind it, and the loop was told of no unhandled error."""
    unhandled: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before - {asyncio.current_task()} == set()
    assert unhandled == []
