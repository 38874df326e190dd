"""Engines for tests: the real trained model, and many short requests to run on it."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings, RuntimeSettings, SchedulingSettings
from tests.message_form import ENCODE


class Golden(msgspec.Struct):
    """The published greedy continuation; ids include the prompt's."""

    prompt_ids: list[int]
    greedy_ids: list[int]
    text: str

    @property
    def output_ids(self) -> list[int]:
        return self.greedy_ids[len(self.prompt_ids) :]


@pytest.fixture(scope="session")
def golden(stories_dir: Path) -> Golden:
    return msgspec.json.decode((stories_dir / "golden_greedy.json").read_bytes(), type=Golden)


@pytest.fixture
def stories_settings(stories_dir: Path) -> Callable[..., EngineSettings]:
    """Settings that serve the real model; keywords go to scheduling or execution, by their names."""

    def make(*, encode: bool = ENCODE, **changes: object) -> EngineSettings:
        parts: dict[str, dict] = {"scheduling": {}, "execution": {"kv_slots": 4096, "threads": 1}}
        for name, value in changes.items():
            part = "scheduling" if name in SchedulingSettings.__struct_fields__ else "execution"
            parts[part][name] = value
        return EngineSettings(
            model=ModelSettings(path=str(stories_dir)),
            scheduling=msgspec.convert(parts["scheduling"], SchedulingSettings),
            execution=msgspec.convert(parts["execution"], ExecutionSettings),
            runtime=RuntimeSettings(encode=encode),
        )

    return make
