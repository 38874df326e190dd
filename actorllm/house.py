"""Builds the house: loads the model, starts the four actors under their supervisors, and takes it all down again.

Consumers start before producers, so the pipeline empties from its front door when it stops. Tokenize and detokenize
restart alone; schedule and execute restart together, because the device's rows and the schedule's belong together.
Knows how actors are joined, not what they do.
"""

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec import structs

from actorllm.actors.detokenize import DetokenizeActor, Transcripts
from actorllm.actors.execute import ExecuteActor
from actorllm.actors.schedule import ScheduleActor
from actorllm.actors.tokenize import ModelLimits, TokenizeActor, check_len, encode_prompt
from actorllm.context import Context, TokenLimit
from actorllm.errors import (
    CheckpointError,
    DeviceHung,
    DeviceLost,
    EngineError,
    EngineFailed,
    EngineStopped,
    QueueFull,
)
from actorllm.execution.load import LoadedModel, load_model
from actorllm.execution.model_plan import read_config
from actorllm.messages import Abort, Accepted, Generate, Outputs, Prompt, SamplingParams, StopFound, TokenEvents, unpack
from actorllm.model_info import EngineStatistics, ModelInfo
from actorllm.models.hub import check_place, download
from actorllm.runtime.actor import Actor
from actorllm.runtime.observer import Observer
from actorllm.runtime.ref import Ref
from actorllm.runtime.supervisor import RestartsExhausted, Strategy, Supervisor
from actorllm.scheduling.request import FinishedRequest, Request, RequestTable
from actorllm.scheduling.scheduler import Scheduler
from actorllm.settings import EngineSettings, ModelSettings
from actorllm.tokenizer.chat_template import ChatTemplate
from actorllm.tokenizer.generation_config import GenerationDefaults, load_generation_config
from actorllm.tokenizer.load import Tokenizer

logger = logging.getLogger(__name__)
FATAL = (DeviceLost, DeviceHung)
MAILBOX = 64
MAX_ENCODED = 2**15
"""Tokens that `encode` gives where the context is smaller, for those who count what is too long."""

DEMO_MODEL = Path(__file__).parent / "demo"
DEMO_NAME = "actorllm-demo"


class House:
    """All that lives while an engine is entered. `run` loads, sets `ready`, and returns after `stop`."""

    info: ModelInfo
    tokenizer: Tokenizer
    default_params: SamplingParams

    def __init__(
        self,
        settings: EngineSettings,
        *,
        deliver: Callable[[TokenEvents], None],
        on_finished: Callable[[FinishedRequest], None],
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._deliver = deliver
        self._on_finished = on_finished
        self._observer = observer
        self._stopping = asyncio.Event()
        self._table = RequestTable()
        self._transcripts = Transcripts()
        self._unsent: deque[Outputs] = deque()
        self._unheard: deque[StopFound | Abort] = deque()
        self._epoch = 0
        self._num_encoding = 0
        self._num_steps = 0  # of the epochs before
        self._num_pauses = 0
        self._scheduler: Scheduler | None = None
        self._loaded: LoadedModel | None = None
        self._template: ChatTemplate | None = None
        self._schedule: Ref | None = None
        self._tokenize: Ref | None = None
        self._supervisors: list[Supervisor] = []

    async def run(self, ready: asyncio.Event) -> None:
        """Load, start everything, and keep it running until `stop`. Raises `ModelError` and the like while loading,
        `EngineError` when an actor or a device failed for good."""
        try:
            generation = await self._load()
            async with (
                self._supervisor("text") as text,
                self._supervisor("core", "one_for_all") as core,
                self._supervisor("front") as front,
            ):
                self._supervisors = [text, core, front]
                await self._start(text, core, front=front, generation=generation)
                ready.set()
                await self._stopping.wait()
        except RestartsExhausted as failed:
            if isinstance(failed.error, EngineError) and isinstance(failed.error, FATAL):
                raise failed.error from failed
            raise EngineFailed(f"{failed}; restart the process") from failed

    def stop(self) -> None:
        """Let `run` end: mailboxes close and drain from the front door on."""
        self._stopping.set()

    async def close(self) -> bool:
        """Give threads and child processes back after `run` has ended; False if a device thread is stuck."""
        if self._template is not None:
            await self._template.close()
        return await self._loaded.devices.close() if self._loaded is not None else True

    async def admit(self, message: Generate) -> list[int]:
        """Send a request in at the front door; its prompt's ids once it is admitted."""
        if self._tokenize is None:
            raise EngineStopped("the engine is not running")
        check_len(message.prompt, self._context.for_prompts)
        self._check_room(self._tokenize.statistics().length)
        accepted: Accepted = await self._tokenize.ask(message)
        return list(unpack(accepted.prompt_ids))

    async def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, without admitting anything. Raises `QueueFull` as admitting does."""
        assert self._template is not None, "the engine has not been entered"
        self._check_room(self._num_encoding)
        self._num_encoding += 1
        try:
            most = max(MAX_ENCODED, self._context.length)
            limit = TokenLimit(most, f"at most {most} are told at a time: send the text in parts")
            return list(await encode_prompt(self.tokenizer, self._template, prompt=prompt, limit=limit))
        finally:
            self._num_encoding -= 1

    def tell_schedule(self, message: Abort | StopFound) -> None:
        """Post an urgent message to schedule; ignored when it has stopped."""
        if self._schedule is not None:
            self._schedule.post(message)

    def statistics(self, *, num_open: int, num_ended: dict) -> EngineStatistics:
        """Gauges of this moment."""
        scheduler = self._scheduler
        assert scheduler is not None, "the engine has not been entered"
        return EngineStatistics(
            num_open=num_open,
            num_ended=num_ended,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_pauses=self._num_pauses + scheduler.num_pauses,
            slots_in_use=scheduler.slots_in_use,
            num_slots=scheduler.num_slots,
            num_steps=self._num_steps + scheduler.num_steps,
            num_restarts=sum(supervisor.num_restarts for supervisor in self._supervisors),
        )

    @property
    def _context(self) -> Context:
        assert self._loaded is not None, "the engine has not been entered"
        return self._loaded.context

    @property
    def _max_texts(self) -> int:
        """Texts that may be tokenized or wait for it: as many as can run or wait afterwards."""
        scheduling = self._settings.scheduling
        return scheduling.max_waiting + scheduling.max_running

    def _check_room(self, num_texts: int) -> None:
        if num_texts >= self._max_texts:
            raise QueueFull(f"{num_texts} texts wait to be tokenized already; try again later, or raise --max-waiting")

    def _supervisor(self, name: str, strategy: Strategy = "one_for_one") -> Supervisor:
        runtime = self._settings.runtime
        return Supervisor(
            name,
            strategy=strategy,
            restarts=runtime.restarts,
            window=runtime.restart_window,
            fatal=FATAL,
            encode=runtime.encode,
            observer=self._observer,
        )

    async def _load(self) -> GenerationDefaults:
        directory = await self._find_model()
        read_config(directory)  # the tokenizer looks into config.json, too, and would blame itself for one that is broken
        self.tokenizer = await asyncio.to_thread(Tokenizer.load, directory)
        generation = load_generation_config(directory, tokenizer=self.tokenizer)
        loaded = await load_model(
            directory,
            self._settings,
            find_invalid=lambda vocab_size: self._never_sampled(vocab_size, generation),
            on_progress=LoadingBar() if sys.stderr.isatty() else None,
        )
        self._loaded = loaded
        self._template = ChatTemplate.of(self.tokenizer)
        self.default_params = generation.params()
        names = self._settings.model.served_names or (model_name(self._settings.model.path),)
        self.info = ModelInfo(
            names=names,
            architecture=loaded.architecture,
            dtype=loaded.dtype,
            device=str(loaded.device),
            context_len=loaded.context.length,
            vocab_size=loaded.vocab_size,
            num_weight_bytes=loaded.num_weight_bytes,
            num_slots=tuple(group.num_slots for group in loaded.groups if not group.is_state),
            created=int(time.time()),
        )
        return generation

    def _never_sampled(self, vocab_size: int, generation: GenerationDefaults) -> list[int]:
        """Ids that stand for no token, and those that the checkpoint suppresses."""
        suppressed = {token_id for token_id in generation.suppressed_ids if token_id < vocab_size}
        return sorted(suppressed.union(self.tokenizer.invalid_ids(vocab_size)))

    async def _find_model(self) -> Path:
        """The folder to serve; a download does not hold up whoever wants to stop."""
        finding = asyncio.ensure_future(asyncio.to_thread(model_directory, self._settings.model))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({finding, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if not finding.done():
            finding.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits for it any more
            raise EngineStopped("the engine was stopped before its model had been fetched")
        return finding.result()

    async def _start(
        self, text: Supervisor, core: Supervisor, *, front: Supervisor, generation: GenerationDefaults
    ) -> None:
        loaded, template = self._loaded, self._template
        assert loaded is not None and template is not None
        detokenize = await text.start("detokenize", self._new_detokenize, capacity=MAILBOX)
        new_execute = partial(
            ExecuteActor,
            loaded.devices,
            deliver=self._tell_done,
            step_timeout=self._settings.execution.step_timeout,
        )
        execute = await core.start("execute", new_execute, capacity=MAILBOX)
        new_schedule = partial(
            ScheduleActor,
            self._new_scheduler,
            execute=execute,
            detokenize=detokenize,
            unsent=self._unsent,
            unheard=self._unheard,
            on_finished=self._on_finished,
        )
        self._schedule = await core.start("schedule", new_schedule, capacity=MAILBOX)
        limits = ModelLimits(loaded.vocab_size, _known_ids(generation.eos_ids, loaded.vocab_size), loaded.context)
        new_tokenize = partial(TokenizeActor, self.tokenizer, template, limits=limits, schedule=self._schedule)
        self._tokenize = await front.start("tokenize", new_tokenize, capacity=self._max_texts)

    def _new_detokenize(self) -> Actor:
        return DetokenizeActor(
            self.tokenizer, self._transcripts, deliver=self._deliver, tell_schedule=self.tell_schedule
        )

    def _new_scheduler(self) -> Scheduler:
        """A scheduler of the next epoch over the surviving table."""
        assert self._loaded is not None
        self._epoch += 1
        scheduling, blamed = self._settings.scheduling, frozenset[Request]()
        if self._scheduler is not None:
            blamed = self._scheduler.under_way
            self._num_steps += self._scheduler.num_steps
            self._num_pauses += self._scheduler.num_pauses
        self._scheduler = Scheduler(
            self._table,
            structs.replace(scheduling, depth=scheduling.depth or (2 if self._loaded.device.type == "cuda" else 1)),
            groups=self._loaded.groups,
            context=self._loaded.context,
            epoch=self._epoch,
            blamed=blamed,
        )
        return self._scheduler

    def _tell_done(self, done) -> None:
        if self._schedule is not None:
            self._schedule.post(done)


def _known_ids(eos_ids: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    """The end tokens that the model can give: checkpoints name others, too, and one that cannot come ends nothing."""
    known = tuple(token_id for token_id in eos_ids if 0 <= token_id < vocab_size)
    if known != eos_ids:
        logger.warning("of the end tokens %s only %s are in the vocabulary of %d ids", list(eos_ids), list(known), vocab_size)
    return known


class LoadingBar:
    """A line on a terminal that shows how far loading is; called on device threads."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, num_read: int, total: int) -> None:
        now = time.monotonic()
        if total > 0 and (now - self._last > 0.1 or num_read >= total):
            self._last = now
            share = min(num_read / total, 1.0)
            end = "\n" if num_read >= total else ""
            sys.stderr.write(f"\rloading weights {share:4.0%} |{'#' * int(share * 40):40}| of {total / 2**20:,.0f} MiB{end}")
            sys.stderr.flush()


def model_directory(settings: ModelSettings) -> Path:
    """The folder to serve: a local one, or else a model of the hub, downloaded; without a path the demo model's.

    Blocks. Raises `SettingsError`, `HubError` or `CheckpointError`.
    """
    path = settings.path
    check_place(path, revision=settings.revision)
    if path is None:
        return DEMO_MODEL
    directory = Path(path) if Path(path).is_dir() else download(path, revision=settings.revision)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json, so it is no Hugging Face model: give the folder or the hub id of one")
    return directory


def model_name(path: str | None) -> str:
    """What a model is called that was given no name: its hub id, or its folder's name."""
    if path is None:
        return DEMO_NAME
    return Path(path).resolve().name if Path(path).is_dir() else path

