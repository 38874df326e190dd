"""Settings: frozen structs, one per part, that everything is configured by.

Values come from a TOML file, then environment variables (`ACTORLLM_<PART>_<FIELD>`, read here and nowhere
else), then CLI flags; later ones win. A field that can be derived is None and derived where the facts are known
(threads and KV memory from the container's limits, the context from config.json).
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import msgspec
from msgspec import Meta, Struct

from actorllm.errors import SettingsError

# Ranges hold for what `load_settings` reads.
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class ModelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is served. `path` is a Hugging Face directory, or else a hub id ORG/NAME, of which `revision` names the branch, tag
    or commit; None serves the demo model. `quantize` rounds its weights while they are loaded."""

    path: str | None = None
    revision: str | None = None
    served_names: tuple[str, ...] = ()
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["int8", "int4", "fp8"] | None = None
    context: Count | None = None


class SchedulingSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who runs. `depth` steps may be under way at once: None is 2 on a GPU, so that it never waits for the event loop, and 1 on a
    CPU, whose threads would compete with it. `admission` "reserve" never overcommits; "optimistic" admits what fits now and pauses
    requests when the slots run out. Timeouts are seconds, None is no limit."""

    max_waiting: Count = 1024
    max_running: Count = 64
    max_step_tokens: Count = 512
    depth: Literal[1, 2] | None = None
    policy: Literal["fcfs"] = "fcfs"
    admission: Literal["reserve", "optimistic"] = "reserve"
    wait_timeout: Seconds | None = 600.0
    run_timeout: Seconds | None = 3600.0

    @property
    def num_under_way(self) -> int:
        """Steps at once: `depth`, or one where nobody has chosen for the device."""
        return self.depth or 1


class ExecutionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how steps run. `device` is "cpu", "cuda", "cuda:1" and so on, or "auto": a GPU if there is one. `kv_cache` is how
    keys and values are kept: "auto" as they are computed, "bf16" (on processors) in 16 bits, "int8" or "fp8" (on GPUs) in a byte with
    a scale for each token and head.
    `kv_memory` is bytes for the KV cache of one rank; `kv_slots` overrides it with a count of tokens (tests and experiments).
    `step_timeout` seconds without a result is a hung device."""

    device: str = "auto"
    threads: Count | None = None
    tensor_parallel: Count = 1
    kv_cache: Literal["auto", "bf16", "int8", "fp8"] = "auto"
    kv_memory: Count | None = None
    kv_slots: Count | None = None
    step_timeout: Seconds = 120.0


class RuntimeSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The actor runtime. `encode` sends every message through msgspec; `restarts` within `restart_window`
    seconds is an actor's budget."""

    encode: bool = True
    restarts: Annotated[int, Meta(ge=0)] = 5
    restart_window: Seconds = 60.0


class EngineSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an `Engine` needs."""

    model: ModelSettings = ModelSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    execution: ExecutionSettings = ExecutionSettings()
    runtime: RuntimeSettings = RuntimeSettings()


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP server. `max_body` is the bytes of a request's body. A body is counted and decoded on the event loop, 5 ms for
    a megabyte, and no thread could take that over, because the decoder keeps the GIL; four megabytes hold several prompts of a
    context of 128k tokens, or a thousand of a short one. What a body may hold is derived from the context
    (`server/body.py`). `drain_timeout` is how long SIGTERM waits for running requests.

    Chat sockets: `allowed_origins` are sites beside this server's own whose pages may connect ("https://example.org"; "null"
    is a page from a file), and under whose names it may be asked; seconds without any message until a quiet socket is closed, and
    between pings; bytes of a frame.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    max_body: Count = 4 * 2**20
    drain_timeout: Annotated[float, Meta(ge=0)] = 30.0
    allowed_origins: tuple[str, ...] = ()
    chat_idle_timeout: Seconds = 600.0
    chat_ping_interval: Seconds = 20.0
    chat_max_frame: Count = 2**20

    def __post_init__(self) -> None:
        """Raises `ValueError` for an origin that no browser would ever send."""
        for origin in self.allowed_origins:
            if not re.fullmatch(r"null|[a-z-]+://[^/\sA-Z]+", origin):
                raise ValueError(f"the origin {origin!r} is not scheme://host in small letters and without a path, as https://chat.example.org is")


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `actorllm serve` reads."""

    model: ModelSettings = ModelSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    execution: ExecutionSettings = ExecutionSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    server: ServerSettings = ServerSettings()

    def engine(self) -> EngineSettings:
        """The part that the engine reads."""
        return EngineSettings(
            model=self.model, scheduling=self.scheduling, execution=self.execution, runtime=self.runtime
        )


def load_settings(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Settings from a TOML file, the environment and flags (`{part: {field: value}}`), in this order.

    Raises `SettingsError` that names the field.
    """
    values: dict[str, dict[str, Any]] = {}
    if path is not None:
        values = _read_toml(path)
    for part, fields in _from_environment(os.environ if environment is None else environment).items():
        values.setdefault(part, {}).update(fields)
    for part, fields in (flags or {}).items():
        values.setdefault(part, {}).update(fields)
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        subject = f"the setting {where.rstrip('`')} is" if where else "the settings are"
        raise SettingsError(f"{subject} wrong: {what}; change it in the file, the environment or the flag") from error


def _read_toml(path: Path) -> dict[str, dict[str, Any]]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings file {path.name} ({error.strerror}); give --config the path of a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path.name} is not TOML: {error}") from error
    for part, fields in values.items():
        if not isinstance(fields, dict):
            raise SettingsError(f"the settings file {path.name}: {part} must be a table, written as [{part}]")
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """`ACTORLLM_SCHEDULING_MAX_WAITING=8` -> `{"scheduling": {"max_waiting": "8"}}`; several values are divided by commas.

    Unknown names are errors.
    """
    parts = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    found: dict[str, dict[str, Any]] = {}
    for name, value in environment.items():
        if not name.startswith("ACTORLLM_"):
            continue
        part, _, field = name.removeprefix("ACTORLLM_").lower().partition("_")
        if part not in parts or field not in parts[part].__struct_fields__:
            raise SettingsError(
                f"the environment variable {name} names no setting; unset it, or write ACTORLLM_<PART>_<FIELD> "
                f"with a part of {', '.join(parts)}"
            )
        is_several = any(each.name == field and get_origin(each.type) is tuple for each in msgspec.structs.fields(parts[part]))
        found.setdefault(part, {})[field] = [each.strip() for each in value.split(",")] if is_several else value
    return found
