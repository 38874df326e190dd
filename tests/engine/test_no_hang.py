"""Whatever breaks, every request ends exactly once: each actor and the device thread, broken in turn under 32 streams.

Where the design restarts, running requests go on with unchanged text; where it does not, every stream fails with the
typed error and the engine says that it is not healthy.
"""

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actorllm import house
from actorllm.actors import detokenize
from actorllm.actors.detokenize import DetokenizeActor, Transcripts
from actorllm.actors.execute import ExecuteActor
from actorllm.actors.schedule import ScheduleActor
from actorllm.actors.tokenize import TokenizeActor
from actorllm.engine import Engine
from actorllm.errors import ActorLLMError, DeviceHung, DeviceLost, EngineError, EngineFailed, RequestFailed
from actorllm.execution.runner import ResidentRunner
from actorllm.messages import Admit, Outputs, SamplingParams, Step, StepDone
from actorllm.scheduling.request import FinishedRequest
from actorllm.scheduling.scheduler import Scheduler
from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings, RuntimeSettings

SettingsFactory = Callable[..., EngineSettings]
NUM_STREAMS = 32
GUARD = 5.0 * float(os.environ.get("TIME_SCALE", "1"))  # seconds; a slow or busy machine may be given more
PARAMS = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
LONG = msgspec.structs.replace(PARAMS, max_tokens=400)
"""Of requests that must not end by their length while a test looks."""
both_encodings = pytest.mark.parametrize("encode", [True, False], ids=["encoded", "plain"])


class Broken(Exception):
    """What the broken part raises."""


class Fault:
    """Replaces `owner.name` by a method that raises for the first message of `kind`, or all if `is_lasting`."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, owner: type, *, name: str, kind: type = object
    ) -> None:
        self.has_struck = threading.Event()
        self.error: Exception = Broken("broken on purpose")
        self.is_lasting = False
        original = getattr(owner, name)

        @functools.wraps(original)
        def broken(actor: Any, *messages: Any) -> Any:
            is_meant = all(isinstance(message, kind) for message in messages)
            if is_meant and (self.is_lasting or not self.has_struck.is_set()):
                self.has_struck.set()
                self.strike()
            return original(actor, *messages)

        monkeypatch.setattr(owner, name, broken)

    def strike(self) -> None:
        raise self.error


@dataclass
class Reading:
    """What the reader of one stream saw."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    ends: list[str] = field(default_factory=list)
    error: ActorLLMError | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)


async def read(engine: Engine, number: int, *, prompt: list[int], reading: Reading) -> Reading:
    """Read a request to its end; a refused submission is its end as well."""
    try:
        stream = await engine.submit(prompt, PARAMS, request_id=f"request-{number}")
    except ActorLLMError as error:
        reading.ends.append("refused")
        reading.error = error
        return reading
    async for events in stream:
        for event in events:
            reading.text += event.text
            reading.token_ids += [event.token_id] if event.token_id >= 0 else []
            if event.finish is not None:
                reading.ends.append(event.finish)
                reading.error = event.failure.error() if event.failure else None
        reading.begun.set()
    return reading


class Streams:
    """32 requests of mixed lengths on an engine, all of them decoding when `start` returns."""

    def __init__(self, engine: Engine, golden) -> None:
        self.engine = engine
        self.finished: list[FinishedRequest] = []
        self.prompts = [golden.greedy_ids[: 2 + 5 * index] for index in range(NUM_STREAMS)]
        self.tasks: list[asyncio.Task[Reading]] = []

    async def start(self) -> None:
        readings = [Reading() for _ in self.prompts]
        for number, (prompt, reading) in enumerate(zip(self.prompts, readings, strict=True)):
            self.tasks.append(asyncio.create_task(read(self.engine, number, prompt=prompt, reading=reading)))
        async with asyncio.timeout(GUARD):
            await asyncio.gather(*(reading.begun.wait() for reading in readings))

    async def ends(self) -> list[Reading]:
        async with asyncio.timeout(GUARD):
            return await asyncio.gather(*self.tasks)

    async def one_more(self, number: int) -> Reading:
        async with asyncio.timeout(GUARD):
            return await read(self.engine, NUM_STREAMS + number, prompt=self.prompts[3], reading=Reading())


@asynccontextmanager
async def running(settings: EngineSettings, golden) -> AsyncIterator[Streams]:
    """An engine with 32 running streams."""
    async with Engine(settings) as engine:
        streams = Streams(engine, golden)
        engine.finished_listeners.append(streams.finished.append)
        await streams.start()
        yield streams


@pytest.fixture(scope="module")
def texts(stories_dir: Path, golden) -> list[str]:
    """What the 32 streams come to when nothing breaks."""

    async def run() -> list[str]:
        settings = EngineSettings(
            model=ModelSettings(path=str(stories_dir)), execution=ExecutionSettings(kv_slots=4096, threads=1)
        )
        async with running(settings, golden) as streams:
            return [reading.text for reading in await streams.ends()]

    return asyncio.run(run())


async def until(is_true: Callable[[], bool]) -> None:
    """Return once it holds; looks at it now and then, because nobody announces it."""
    async with asyncio.timeout(GUARD):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def has_slots_back(engine: Engine) -> bool:
    return engine.statistics().slots_in_use == (0,) and engine.statistics().num_running == 0


def break_tokenize(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch, TokenizeActor, name="receive")


def break_schedule(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch, ScheduleActor, name="receive", kind=StepDone)


def break_admission(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch, ScheduleActor, name="receive", kind=Admit)


def break_execute(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch, ExecuteActor, name="receive", kind=Step)


def break_detokenize(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch, DetokenizeActor, name="_handle")


def break_transcripts(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch, Transcripts, name="record")


def break_device(monkeypatch: pytest.MonkeyPatch) -> Fault:
    fault = Fault(monkeypatch, ResidentRunner, name="forward")
    fault.error = RuntimeError("a kernel was given a wrong shape")
    return fault


@both_encodings
@pytest.mark.parametrize(
    ("breaks", "is_next_refused"),
    [
        (break_tokenize, True),
        (break_schedule, False),
        (break_admission, True),
        (break_execute, False),
        (break_detokenize, False),
        (break_transcripts, False),
        (break_device, False),
    ],
)
async def test_running_requests_outlive_what_restarts(
    stories_settings: SettingsFactory,
    golden,
    *,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[pytest.MonkeyPatch], Fault],
    is_next_refused: bool,
    encode: bool,
) -> None:
    async with running(stories_settings(encode=encode), golden) as streams:
        num_steps = streams.engine.statistics().num_steps
        fault = breaks(monkeypatch)
        during = await streams.one_more(0)  # what stood at the broken place may be told to come again
        assert fault.has_struck.is_set()
        assert during.ends == (["refused"] if is_next_refused else ["length"])
        readings = await streams.ends()
        assert [reading.ends for reading in readings] == [["length"]] * NUM_STREAMS
        assert [reading.text for reading in readings] == texts
        after = await streams.one_more(1)
        assert (after.ends, after.text) == (["length"], texts[3])
        await until(lambda: has_slots_back(streams.engine))
        assert streams.engine.is_healthy
        assert streams.engine.statistics().num_restarts in (1, 2)  # schedule and execute go together
        assert streams.engine.statistics().num_steps >= num_steps + (PARAMS.max_tokens or 0)  # counted on over the restart
        ids = sorted(record.request_id for record in streams.finished)
        assert len(ids) == len(set(ids)) == NUM_STREAMS + 2 - is_next_refused


async def test_an_abort_outlives_the_crash_of_who_was_told(
    stories_settings: SettingsFactory, golden, *, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(stories_settings(), golden) as streams, asyncio.timeout(GUARD):
        stream = await streams.engine.submit(golden.prompt_ids, LONG, request_id="left")
        await anext(stream)
        fault = Fault(monkeypatch, Scheduler, name="abort")
        stream.abort()
        ends = [event.finish async for events in stream for event in events if event.finish]
        assert (ends, fault.has_struck.is_set()) == (["abort"], True)
        assert [reading.text for reading in await streams.ends()] == texts
        await until(lambda: has_slots_back(streams.engine))


async def test_a_stop_string_outlives_the_crash_of_who_was_told(
    stories_settings: SettingsFactory, golden, *, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(stories_settings(), golden) as streams, asyncio.timeout(GUARD):
        fault = Fault(monkeypatch, Scheduler, name="stop")
        until_space = msgspec.structs.replace(LONG, stop=(" ",), min_tokens=8)
        stream = await streams.engine.submit(golden.prompt_ids, until_space, request_id="stopped")
        ends = [event.finish async for events in stream for event in events if event.finish]
        assert (ends, fault.has_struck.is_set()) == (["stop"], True)
        assert [reading.text for reading in await streams.ends()] == texts
        await until(lambda: has_slots_back(streams.engine))


async def test_outputs_that_wait_for_room_outlive_a_crash(
    stories_settings: SettingsFactory, golden, *, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedule waits because detokenize's mailbox is full; a crash of execute restarts it in the middle of that."""
    monkeypatch.setattr(house, "MAILBOX", 1)
    gate, mailboxes, is_blocked = asyncio.Event(), [], threading.Event()
    receive, forward = DetokenizeActor.receive, ResidentRunner.forward

    async def receive_behind_the_gate(actor: DetokenizeActor, message: Outputs) -> None:
        mailboxes.append(actor.ref)
        await gate.wait()
        await receive(actor, message)

    def forward_slowly(runner: ResidentRunner, step: Step) -> Any:
        if not gate.is_set() and is_blocked.wait(0.5):
            is_blocked.clear()
            raise RuntimeError("a step failed while schedule waited")
        return forward(runner, step)

    async with running(stories_settings(), golden) as streams, asyncio.timeout(GUARD):
        monkeypatch.setattr(DetokenizeActor, "receive", receive_behind_the_gate)
        monkeypatch.setattr(ResidentRunner, "forward", forward_slowly)
        await until(lambda: bool(mailboxes) and mailboxes[0].statistics().blocked > 0)
        is_blocked.set()
        await until(lambda: streams.engine.statistics().num_restarts == 2)
        gate.set()
        readings = await streams.ends()
        assert [(reading.ends, reading.text) for reading in readings] == [(["length"], text) for text in texts]


@both_encodings
async def test_a_lost_device_fails_every_stream(
    stories_settings: SettingsFactory, golden, *, monkeypatch: pytest.MonkeyPatch, encode: bool
) -> None:
    async with running(stories_settings(encode=encode, depth=2), golden) as streams:
        fault = Fault(monkeypatch, ResidentRunner, name="forward")
        fault.error = DeviceLost("the device is lost")
        await check_all_failed(streams, DeviceLost)


@both_encodings
async def test_a_step_that_never_returns_fails_every_stream(
    stories_settings: SettingsFactory, golden, *, monkeypatch: pytest.MonkeyPatch, encode: bool
) -> None:
    released = threading.Event()
    async with running(stories_settings(encode=encode, step_timeout=1.0), golden) as streams:
        try:
            fault = Fault(monkeypatch, ResidentRunner, name="forward")
            fault.strike = released.wait  # type: ignore[method-assign]
            await check_all_failed(streams, DeviceHung)
        finally:
            released.set()


@pytest.mark.parametrize("breaks", [break_schedule, break_execute, break_detokenize, break_device])
async def test_what_always_raises_uses_up_its_restarts(
    stories_settings: SettingsFactory, golden, *, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[pytest.MonkeyPatch], Fault]
) -> None:
    async with running(stories_settings(), golden) as streams:
        breaks(monkeypatch).is_lasting = True
        await check_all_failed(streams, EngineFailed, blamed=RequestFailed)


async def test_a_tokenizer_that_always_raises_uses_up_its_restarts(
    stories_settings: SettingsFactory, golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(stories_settings(), golden) as streams:
        break_tokenize(monkeypatch).is_lasting = True
        number = 0
        while streams.engine.is_healthy:
            assert (await streams.one_more(number)).ends == ["refused"]
            number += 1
            await asyncio.sleep(0)
        await check_all_failed(streams, EngineFailed)


async def check_all_failed(
    streams: Streams, kind: type[EngineError], *, blamed: type[ActorLLMError] | None = None
) -> None:
    """Every stream ends once, with `kind`, or `blamed` for a few; so does what is asked of the engine from then on."""
    engine = streams.engine
    readings = await streams.ends()
    assert [reading.ends for reading in readings] == [["error"]] * NUM_STREAMS
    assert {type(reading.error) for reading in readings} - {blamed} == {kind}
    assert sum(type(reading.error) is blamed for reading in readings) < RuntimeSettings().restarts
    async with asyncio.timeout(GUARD):
        failure = await engine.wait_failed()
    assert type(failure) is kind
    assert not engine.is_healthy
    with pytest.raises(kind):
        await engine.submit([1], PARAMS)
    assert engine.statistics().num_open == 0


@pytest.mark.parametrize("place", ["ChoiceText.push", "ChoiceText.__init__", "DetokenizeActor._prompt_event"])
async def test_output_that_cannot_be_decoded_fails_its_own_request(
    stories_settings: SettingsFactory, golden, *, texts: list[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    unlucky = msgspec.structs.replace(PARAMS, prompt_logprobs=1, seed=1234)
    async with running(stories_settings(), golden) as streams:
        break_decoding(monkeypatch, place)
        async with asyncio.timeout(GUARD):
            stream = await streams.engine.submit(golden.prompt_ids, unlucky, request_id="unlucky")
            events = [event async for batch in stream for event in batch]
        assert [event.finish for event in events if event.finish] == ["error"]
        assert events[-1].failure is not None and events[-1].failure.kind == "RequestFailed"
        readings = await streams.ends()
        assert [reading.text for reading in readings] == texts
        await until(lambda: has_slots_back(streams.engine))
        assert streams.engine.statistics().num_restarts == 0


def break_decoding(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The request called "unlucky" meets an exception at `place`, every time."""
    owner_name, _, name = place.partition(".")
    owner = getattr(detokenize, owner_name)
    original = getattr(owner, name)

    @functools.wraps(original)
    def broken(self: Any, *arguments: Any) -> Any:
        if any(getattr(argument, "request_id", None) == "unlucky" for argument in arguments):
            raise Broken("these ids have no text")
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, broken)



async def test_a_start_that_fails_leaves_no_thread(stories_settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise Broken("the last step of loading failed")

    monkeypatch.setattr(house.ChatTemplate, "of", refuse)
    threads = {thread for thread in threading.enumerate() if "asyncio" not in thread.name}
    with pytest.raises(Broken):
        async with Engine(stories_settings()):
            pass
    assert {thread for thread in threading.enumerate() if "asyncio" not in thread.name} == threads
