"""Builds the house: loads the model, starts the four actors under their supervisors, and takes it all down again.

Consumers start before producers, so the pipeline empties from its front door when it stops. Tokenize and detokenize
restart alone; schedule and execute restart together, because the device's rows and the schedule's belong together.
Knows how actors are joined, not what they do.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from actorllm.actors.detokenize import DetokenizeActor, Transcripts
from actorllm.actors.execute import ExecuteActor
from actorllm.actors.schedule import ScheduleActor
from actorllm.actors.tokenize import ModelLimits, TokenizeActor
from actorllm.errors import DeviceError, EngineError, EngineFailed, EngineStopped
from actorllm.execution.devices import Devices
from actorllm.messages import Abort, Generate, SamplingParams, StopFound, TokenEvents, unpack
from actorllm.model_info import EngineStatistics, ModelInfo
from actorllm.runtime.observer import Observer
from actorllm.runtime.ref import Ref
from actorllm.runtime.supervisor import RestartsExhausted, Supervisor
from actorllm.scheduling.request import RequestTable
from actorllm.scheduling.scheduler import Scheduler
from actorllm.settings import EngineSettings
from actorllm.tokenizer.chat_template import ChatTemplate
from actorllm.tokenizer.load import GenerationDefaults, Tokenizer, load_generation_config

FATAL = (DeviceError,)


class House:
    """All that lives while an engine is entered. `run` loads, sets `ready`, and returns after `stop`."""

    info: ModelInfo
    tokenizer: Tokenizer
    default_params: SamplingParams

    def __init__(self, settings: EngineSettings, *, deliver: Callable[[TokenEvents], None]) -> None:
        self._settings = settings
        self._deliver = deliver
