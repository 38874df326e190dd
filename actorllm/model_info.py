"""What an engine tells about itself: the served model's facts and the gauges of a moment."""

from msgspec import Struct

from actorllm.messages import FinishReason


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What is served. `names[0]` is the model's own name, the rest are aliases; lengths are tokens."""

    names: tuple[str, ...]
    architecture: str
    dtype: str
    device: str
    context_len: int
    vocab_size: int
    num_weight_bytes: int
    num_slots: tuple[int, ...]
    created: int

    @property
    def name(self) -> str:
        return self.names[0]


class EngineStatistics(Struct, frozen=True, kw_only=True):
    """Gauges of this moment, and counters since the start."""

    num_open: int
    num_ended: dict[FinishReason, int]
    num_running: int
    num_waiting: int
    num_pauses: int
    slots_in_use: tuple[int, ...]
    num_slots: tuple[int, ...]
    num_steps: int
    num_restarts: int
