"""ActorLLM: an LLM inference server and library made of asyncio actors.

The names below are imported on first use, so that tools which only list plugins never load torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actorllm.engine import Engine as Engine
    from actorllm.llm import LLM as LLM
    from actorllm.messages import SamplingParams as SamplingParams
    from actorllm.settings import EngineSettings as EngineSettings

__version__ = "0.1.0"
__all__ = ["LLM", "Engine", "EngineSettings", "SamplingParams"]

# libgomp reads this once, when torch loads it: threads that wait for work spin so briefly that an event loop beside
# them is not starved.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_HOMES = {
    "LLM": "actorllm.llm",
    "Engine": "actorllm.engine",
    "EngineSettings": "actorllm.settings",
    "SamplingParams": "actorllm.messages",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'actorllm' has no attribute {name!r}")
